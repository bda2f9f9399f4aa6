{{- define "preread.name" -}}
{{- if contains "preread" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-preread{{ end }}
{{- end }}

{{- define "preread.selector" -}}
app.kubernetes.io/name: preread
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "preread.labels" -}}
{{ include "preread.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: preread
{{- end }}

{{- define "preread.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* Nobody is root, and nothing can be written but the volumes: the namespace may enforce `restricted`. */}}
{{- define "preread.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- /* What sends requests is told first, then what is under way ends: no preStop is needed. */}}
terminationGracePeriodSeconds: {{ add .of.drainSeconds .of.finishSeconds 15 }}
{{- end }}

{{- define "preread.restricted" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- define "preread.probes" -}}
{{- /* A missing model is fetched first, and nothing listens meanwhile: half an hour. */}}
startupProbe:
  httpGet: { path: /health, port: http }
  periodSeconds: 5
  failureThreshold: 360
livenessProbe:
  httpGet: { path: /health, port: http }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: http }
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 1
{{- end }}

{{- define "preread.cloud.container" -}}
name: cloud
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{ include "preread.restricted" . }}
args:
  - cloud
  - --model={{ .Values.model }}
  - --host=0.0.0.0
  - --port=8000
  - --store={{ .Values.cloud.store | default "/var/lib/preread/store" }}
  - --api-key-file=/etc/preread/cloud/keys
  - --drain-s={{ .Values.cloud.drainSeconds }}
  - --finish-s={{ .Values.cloud.finishSeconds }}
{{- range .Values.cloud.options }}
  - {{ . | quote }}
{{- end }}
{{- with .Values.cloud.variablesFrom }}
envFrom:
{{- range . }}
  - secretRef: { name: {{ . }} }
{{- end }}
{{- end }}
ports:
  - { name: http, containerPort: 8000 }
{{ include "preread.probes" . }}
resources: {{- toYaml .Values.cloud.resources | nindent 2 }}
volumeMounts:
  - { name: keys, mountPath: /etc/preread/cloud, readOnly: true }
  - { name: store, mountPath: /var/lib/preread }
  - { name: cache, mountPath: /var/cache/preread }
  - { name: tmp, mountPath: /tmp }
{{- end }}

{{- define "preread.cloud.volumes" -}}
- name: keys
  secret: { secretName: {{ .Values.cloud.keysSecret }}, defaultMode: 0400 }
- name: store
{{- if .Values.cloud.store }}
  emptyDir: { sizeLimit: 64Mi }
{{- else }}
  persistentVolumeClaim: { claimName: {{ .Values.cloud.volume.existingClaim | default (printf "%s-store" (include "preread.name" .)) }} }
{{- end }}
- name: cache
  emptyDir: { sizeLimit: {{ .Values.cloud.cache }} }
- name: tmp
  emptyDir: { sizeLimit: {{ ternary "4Gi" "1Gi" .Values.ray.enabled }} }
{{- end }}
