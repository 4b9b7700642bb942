{{- define "tuneserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 55 characters, so that "-metrics" fits behind it; a Service's name has no dots. */}}
{{- define "tuneserve.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 55 | trimSuffix "-" }}
{{- else }}
{{- $name := include "tuneserve.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- $full | replace "." "-" | trunc 55 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "tuneserve.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tuneserve.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "tuneserve.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "tuneserve.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
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

{{/* The server's own file: keys of a model are the values' keys in snake_case. */}}
{{- define "tuneserve.serverConfig" -}}
{{- $models := dict }}
{{- range $name, $model := .Values.models }}
{{- $settings := dict }}
{{- range $key, $value := $model }}
{{- $_ := set $settings (snakecase $key) $value }}
{{- end }}
{{- $_ := set $models $name $settings }}
{{- end }}
{{- dict
  "listen" (printf "0.0.0.0:%d" (int .Values.grpcPort))
  "metrics_listen" (printf "0.0.0.0:%d" (int .Values.metricsPort))
  "drain_seconds" .Values.drainSeconds
  "models" $models
  | toYaml }}
{{- end }}

{{/* What the schema can't say, because it looks at more than one value or at what has no default. */}}
{{- define "tuneserve.check" -}}
{{- if not .Values.models }}
{{- fail "models: name at least one, e.g. --set models.sentiment.path=/models/sentiment" }}
{{- end }}
{{- if and .Values.modelsClaim .Values.modelsVolume }}
{{- fail "modelsClaim and modelsVolume: give one of them, not both" }}
{{- end }}
{{- if eq (int .Values.grpcPort) (int .Values.metricsPort) }}
{{- fail "grpcPort and metricsPort: give two different ports" }}
{{- end }}
{{- if and .Values.autoscalingEnabled (gt (int .Values.autoscalingMinReplicas) (int .Values.autoscalingMaxReplicas)) }}
{{- fail "autoscalingMinReplicas: must not be more than autoscalingMaxReplicas" }}
{{- end }}
{{- end }}
