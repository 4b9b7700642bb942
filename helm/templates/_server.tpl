{{/* The pod of a server. Several machines share one in leaderworkerset.yaml. */}}
{{- define "tuneserve.serverTemplate" -}}
metadata:
  annotations:
    {{- /* A new configuration makes new pods, except for what the running ones take. */}}
    {{- $config := include "tuneserve.serverConfig" . | fromYaml }}
    {{- if .Values.reloadModels }}
    {{- $config = omit $config "models" "aliases" }}
    {{- end }}
    {{- $checksum := dict "checksum/config" (toYaml $config | sha256sum) }}
    {{- merge $checksum .Values.podAnnotations | toYaml | nindent 4 }}
  labels:
    {{- /* Not the version labels: they would reload every model for a change of the chart alone. */}}
    {{- merge (include "tuneserve.selectorLabels" . | fromYaml) .Values.podLabels | toYaml | nindent 4 }}
spec:
  serviceAccountName: {{ include "tuneserve.serviceAccountName" . | quote }}
  automountServiceAccountToken: false
  # A Service called "vllm" would set VLLM_PORT, which vLLM takes for its own setting.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .Values.terminationGraceSeconds | default (include "tuneserve.endSeconds" .) }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "tuneserve.podSecurityContext" . | nindent 4 }}
  {{- with .Values.fetch }}
  initContainers:
    {{- range $name, $source := . }}
    - name: {{ printf "fetch-%s" $name | quote }}
      image: {{ include "tuneserve.image" $ | quote }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      command: [tuneserve, fetch, --if-missing, {{ $source | quote }}, {{ printf "%s/%s" $.Values.modelsMountPath $name | quote }}]
      env:
        {{- include "tuneserve.env" $ | nindent 8 }}
        {{- with $.Values.fetchEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        {{- toYaml $.Values.resources | nindent 8 }}
      securityContext:
        {{- include "tuneserve.securityContext" $ | nindent 8 }}
      volumeMounts:
        - name: models
          mountPath: {{ $.Values.modelsMountPath | quote }}
        - name: tmp
          mountPath: /tmp
    {{- end }}
  {{- end }}
  containers:
    - name: server
      image: {{ include "tuneserve.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [tuneserve, serve, --config, /etc/tuneserve/server.yaml]
      env:
        {{- include "tuneserve.env" . | nindent 8 }}
        - name: HF_HUB_OFFLINE
          value: "1"
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: grpc
          containerPort: {{ .Values.grpcPort }}
        - name: metrics
          containerPort: {{ .Values.metricsPort }}
        - name: health
          containerPort: {{ .Values.healthPort }}
      # Health says SERVING after a real warm-up. Until this probe succeeds, the other two don't run.
      startupProbe:
        grpc:
          port: {{ .Values.healthPort }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ ceil (divf .Values.startupSeconds 5) }}
      readinessProbe:
        grpc:
          port: {{ .Values.healthPort }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      # Slower than readiness: a busy server first loses its traffic, and only a dead one is restarted. It asks for
      # the service that needs no engine: the server itself starts a dead engine again, or ends.
      livenessProbe:
        grpc:
          port: {{ .Values.healthPort }}
          service: tuneserve.v1.ModelService
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      lifecycle:
        preStop:
          # New calls go elsewhere before SIGTERM starts the drain.
          exec:
            command: [sleep, {{ .Values.preStopSeconds | quote }}]
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- include "tuneserve.securityContext" . | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/tuneserve
          readOnly: true
        {{- /* Whole directories: a file mounted by subPath would never change. */}}
        {{- range $name, $secret := include "tuneserve.secrets" . | fromYaml }}
        - name: {{ $name }}
          mountPath: /etc/tuneserve-{{ $name }}
          readOnly: true
        {{- end }}
        - name: tmp
          mountPath: /tmp
        - name: shm
          mountPath: /dev/shm
        {{- if or .Values.modelsClaim .Values.modelsVolume .Values.fetch }}
        - name: models
          mountPath: {{ .Values.modelsMountPath | quote }}
          readOnly: true
        {{- end }}
        {{- if .Values.indexesClaim }}
        - name: indexes
          mountPath: {{ .Values.indexesMountPath | quote }}
        {{- end }}
        {{- if .Values.feedbackClaim }}
        - name: feedback
          mountPath: {{ .Values.feedbackMountPath | quote }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "tuneserve.fullname" . | quote }}
    {{- range $name, $secret := include "tuneserve.secrets" . | fromYaml }}
    - name: {{ $name }}
      secret:
        secretName: {{ $secret | quote }}
        # Read by fsGroup.
        defaultMode: 0440
    {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: {{ .Values.tmpSize }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .Values.shmSize }}
    {{- if .Values.modelsClaim }}
    - name: models
      persistentVolumeClaim:
        claimName: {{ .Values.modelsClaim | quote }}
    {{- else if .Values.modelsVolume }}
    - name: models
      {{- toYaml .Values.modelsVolume | nindent 6 }}
    {{- else if .Values.fetch }}
    - name: models
      emptyDir:
        sizeLimit: {{ .Values.fetchSize }}
    {{- end }}
    {{- if .Values.indexesClaim }}
    - name: indexes
      persistentVolumeClaim:
        claimName: {{ .Values.indexesClaim | quote }}
    {{- end }}
    {{- if .Values.feedbackClaim }}
    - name: feedback
      persistentVolumeClaim:
        claimName: {{ .Values.feedbackClaim | quote }}
    {{- end }}
  {{- with include "tuneserve.scheduling" . }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
