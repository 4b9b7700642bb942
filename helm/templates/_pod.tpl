{{/* What the server's pods, the Jobs' and the test's have in common. */}}

{{- define "tuneserve.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.runAsUser }}
runAsGroup: {{ int64 .Values.runAsGroup }}
fsGroup: {{ int64 .Values.fsGroup }}
# Not a walk over every file of a large volume at each start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tuneserve.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The user has no entry in the image's passwd, and only /tmp can be written. */}}
{{- define "tuneserve.env" -}}
- name: HOME
  value: /tmp
- name: USER
  value: tuneserve
{{- end }}

{{- define "tuneserve.scheduling" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A Job's pod, which can write the claim: `args`; further `env`, and the names of a `config` map and a `feedback`
claim to mount, if any. */}}
{{- define "tuneserve.jobTemplate" -}}
{{- $root := .root }}
{{- $values := .root.Values }}
{{- $image := ternary $values.jobImage $values.image (ne $values.jobImage.repository "") }}
{{- /* Not the selector labels: a Service must not call a Job. */}}
{{- $labels := dict "app.kubernetes.io/name" (printf "%s-job" (include "tuneserve.name" $root) | trunc 63) "app.kubernetes.io/instance" $root.Release.Name }}
metadata:
  labels:
    {{- merge $labels $values.podLabels | toYaml | nindent 4 }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "tuneserve.serviceAccountName" $root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $values.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "tuneserve.podSecurityContext" $root | nindent 4 }}
  containers:
    - name: job
      image: {{ include "tuneserve.image" (dict "Values" (dict "image" $image) "Chart" $root.Chart) | quote }}
      imagePullPolicy: {{ $image.pullPolicy }}
      command:
        {{- toYaml (prepend .args "tuneserve") | nindent 8 }}
      env:
        {{- include "tuneserve.env" $root | nindent 8 }}
        {{- with concat (default list .env) $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        {{- toYaml $values.jobResources | nindent 8 }}
      securityContext:
        {{- include "tuneserve.securityContext" $root | nindent 8 }}
      volumeMounts:
        - name: models
          mountPath: {{ $values.modelsMountPath | quote }}
        - name: tmp
          mountPath: /tmp
        - name: shm
          mountPath: /dev/shm
        {{- with .feedback }}
        - name: feedback
          mountPath: {{ $values.feedbackMountPath | quote }}
          readOnly: {{ not $values.retrainPolicy.remove_learned }}
        {{- end }}
        {{- if .config }}
        - name: config
          mountPath: /etc/tuneserve
          readOnly: true
        {{- end }}
  volumes:
    - name: models
      persistentVolumeClaim:
        claimName: {{ $values.modelsClaim | quote }}
    - name: tmp
      emptyDir:
        sizeLimit: {{ $values.tmpSize }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $values.shmSize }}
    {{- with .feedback }}
    - name: feedback
      persistentVolumeClaim:
        claimName: {{ . | quote }}
    {{- end }}
    {{- with .config }}
    - name: config
      configMap:
        name: {{ . | quote }}
    {{- end }}
  {{- with include "tuneserve.scheduling" $root }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Of its name and its contents, because a Job can't be changed: another one is a new Job. */}}
{{- define "tuneserve.jobName" -}}
{{- printf "%s-%s-%s" (include "tuneserve.fullname" (index . 0) | trunc 40 | trimSuffix "-") (index . 1) (index . 2 | sha256sum | trunc 8) }}
{{- end }}
