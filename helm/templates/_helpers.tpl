{{- define "tuneserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 54 characters, so that "-headless" fits behind it; a Service's name has no dots. */}}
{{- define "tuneserve.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 54 | trimSuffix "-" }}
{{- else }}
{{- $name := include "tuneserve.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- $full | replace "." "-" | trunc 54 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What an autoscaler scales. */}}
{{- define "tuneserve.scaleTarget" -}}
apiVersion: {{ ternary "apps/v1" "leaderworkerset.x-k8s.io/v1" (eq (int .Values.nodes) 1) }}
kind: {{ ternary "Deployment" "LeaderWorkerSet" (eq (int .Values.nodes) 1) }}
name: {{ include "tuneserve.fullname" . | quote }}
{{- end }}

{{- define "tuneserve.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tuneserve.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "tuneserve.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (include "tuneserve.name" .) | trunc 63 | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Whether helm test can call: with a key of its own where callers need one, and without a certificate. */}}
{{- define "tuneserve.testable" -}}
{{- if not (or .Values.clientCaSecret (and .Values.tenantsSecret (not .Values.testKeySecret))) }}yes{{ end }}
{{- end }}

{{- define "tuneserve.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "tuneserve.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Without TLS, proxies need to be told that it is HTTP/2. */}}
{{- define "tuneserve.grpcServicePort" -}}
- name: grpc
  port: {{ .Values.grpcPort }}
  targetPort: grpc
  {{- if not .Values.tlsSecret }}
  appProtocol: kubernetes.io/h2c
  {{- end }}
{{- end }}

{{/* This release's metrics, with the labels that the ServiceMonitor gives them. */}}
{{- define "tuneserve.metricsSelector" -}}
namespace={{ .Release.Namespace | quote }}, job={{ printf "%s-metrics" (include "tuneserve.fullname" .) | quote }}
{{- end }}

{{- define "tuneserve.serviceAccountName" -}}
{{- default (ternary (include "tuneserve.fullname" .) "default" .Values.serviceAccountCreate) .Values.serviceAccountName }}
{{- end }}

{{- define "tuneserve.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where fetched checkpoints are. */}}
{{- define "tuneserve.fetched" -}}
{{- range $name, $_ := .Values.fetch }}
- {{ printf "%s/%s" (trimSuffix "/" $.Values.modelsMountPath) $name | quote }}
{{- end }}
{{- end }}

{{/* The ports that fetching calls: of stores and the hub, and of URLs in `fetch` and in `fetchEnv`, such as a proxy's. */}}
{{- define "tuneserve.fetchPorts" -}}
{{- $ports := list 443 }}
{{- $urls := values .Values.fetch }}
{{- range .Values.fetchEnv }}
{{- $urls = append $urls (toString .value) }}
{{- end }}
{{- range $urls }}
{{- if regexMatch "^https?://" . }}
{{- $port := regexFind "^https?://[^/]*" . | regexFind ":[0-9]+$" | trimPrefix ":" }}
{{- $ports = append $ports (int (default (ternary 443 80 (hasPrefix "https" .)) $port)) }}
{{- end }}
{{- end }}
{{- uniq $ports | sortAlpha | toYaml }}
{{- end }}

{{/* How long a pod takes to end: preStop, linger, drain, and 25 s for its engines. */}}
{{- define "tuneserve.endSeconds" -}}
{{- add .Values.preStopSeconds .Values.lingerSeconds .Values.drainSeconds 25 }}
{{- end }}

{{/* The server's own file: keys of a model or an index are the values' keys in snake_case. */}}
{{- define "tuneserve.serverConfig" -}}
{{- $models := dict }}
{{- range $name, $model := .Values.models }}
{{- $settings := dict }}
{{- range $key, $value := $model }}
{{- $_ := set $settings (snakecase $key) $value }}
{{- end }}
{{- if gt (int $.Values.nodes) 1 }}
{{- $_ := set $settings "engine" (merge (dict "nnodes" $.Values.nodes) (default dict $model.engine)) }}
{{- end }}
{{- $_ := set $models $name $settings }}
{{- end }}
{{- $indexes := dict }}
{{- range $name, $index := .Values.indexes }}
{{- $settings := dict }}
{{- range $key, $value := $index }}
{{- $_ := set $settings (snakecase $key) $value }}
{{- end }}
{{- $_ := set $indexes $name $settings }}
{{- end }}
{{- $config := dict
  "listen" (printf "0.0.0.0:%d" (int .Values.grpcPort))
  "metrics_listen" (printf "0.0.0.0:%d" (int .Values.metricsPort))
  "health_listen" (printf "0.0.0.0:%d" (int .Values.healthPort))
  "processes" .Values.processes
  "max_connections" .Values.maxConnections
  "max_connection_age_seconds" .Values.maxConnectionAgeSeconds
  "max_connection_idle_seconds" .Values.maxConnectionIdleSeconds
  "keepalive_seconds" .Values.keepaliveSeconds
  "max_streams" .Values.maxStreams
  "max_calls" .Values.maxCalls
  "linger_seconds" .Values.lingerSeconds
  "drain_seconds" .Values.drainSeconds
  "stall_seconds" .Values.stallSeconds
  "watchdog_seconds" .Values.watchdogSeconds
  "load_seconds" .Values.loadSeconds
  "on_engine_failure" .Values.onEngineFailure
  "log_requests" .Values.logRequests
  "log_content" .Values.logContent
  "models" $models
  "aliases" .Values.aliases
  "monitors" .Values.monitors
  "indexes" $indexes
  "reload_models" .Values.reloadModels }}
{{- if .Values.feedbackClaim }}
{{- $_ := set $config "feedback" (dict "path" .Values.feedbackMountPath "max_rows" (int64 .Values.feedbackMaxRows) "max_bytes" (int64 .Values.feedbackMaxBytes) "redact" .Values.feedbackRedact) }}
{{- end }}
{{- if .Values.tlsSecret }}
{{- $tls := dict "certificate" "/etc/tuneserve-tls/tls.crt" "key" "/etc/tuneserve-tls/tls.key" }}
{{- if .Values.clientCaSecret }}
{{- $_ := set $tls "client_ca" "/etc/tuneserve-client-ca/ca.crt" }}
{{- end }}
{{- $_ := set $config "tls" $tls }}
{{- end }}
{{- if .Values.tenantsSecret }}
{{- $_ := set $config "tenants" "/etc/tuneserve-tenants/tenants.yaml" }}
{{- end }}
{{- if .Values.adminEnabled }}
{{- $_ := set $config "admin_listen" (printf "127.0.0.1:%d" (int .Values.adminPort)) }}
{{- end }}
{{- with .Values.modelsRoot }}
{{- $_ := set $config "models_root" . }}
{{- end }}
{{- with .Values.otlpEndpoint }}
{{- $_ := set $config "otlp_endpoint" . }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* Secrets by the name of their volume; each is a directory /etc/tuneserve-NAME. */}}
{{- define "tuneserve.secrets" -}}
{{- with .Values.tlsSecret }}
tls: {{ . | quote }}
{{- end }}
{{- with .Values.clientCaSecret }}
client-ca: {{ . | quote }}
{{- end }}
{{- with .Values.tenantsSecret }}
tenants: {{ . | quote }}
{{- end }}
{{- end }}
