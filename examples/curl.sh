#!/bin/sh
# An edge with nothing but curl: what it has, a chat about a context, the same as it is generated, and how it went.
#
#     examples/curl.sh http://127.0.0.1:8080 manual "Which port does the cloud use?"
set -eu
edge=$1 context=$2 question=$3 # the question stands in JSON: write " in it as \"

ask() {
    curl -sS --fail-with-body -N "$edge/v1/chat/completions" -H 'Content-Type: application/json' -d "{
      \"context\": \"$context\", \"temperature\": 0, \"max_tokens\": 40, \"stream\": $1,
      \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}"
    echo
}

curl -sS --fail-with-body "$edge/v1/models"
echo
ask false # its `timings` say where the context came from
ask true  # lines of `data: {…}`, the last one `data: [DONE]`
curl -sS --fail-with-body "$edge/metrics" | grep '^preread_' | head -n 5
