#!/bin/sh
# Publish a folder's documents, and keep the cloud's contexts in step with it. PREREAD_CLOUD names the cloud.
#
#     export PREREAD_CLOUD=http://127.0.0.1:8000
#     examples/publish_folder.sh handbook handbook.             # once; from cron, only what changed is sent
#     examples/publish_folder.sh handbook handbook. --watch     # stays, and follows the folder
#
# Contexts are called PREFIX and the path below the folder: handbook/parts/fan.md is handbook.parts.fan.
# --remove takes away those under the prefix whose document is gone.
set -eu
folder=$1 prefix=$2
shift 2

preread publish "$folder" --prefix "$prefix" --remove --dry-run    # names, exact tokens, what would be done
preread publish "$folder" --prefix "$prefix" --remove "$@"
