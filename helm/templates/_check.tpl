{{/* What the schema can't say, because it looks at more than one value or at what has no default. */}}
{{- define "tuneserve.check" -}}
{{- if not .Values.models }}
{{- fail "models: name at least one, e.g. --set models.sentiment.path=/models/sentiment" }}
{{- end }}
{{- if and .Values.modelsClaim .Values.modelsVolume }}
{{- fail "modelsClaim and modelsVolume: give one of them, not both" }}
{{- end }}
{{- $ports := list (int .Values.grpcPort) (int .Values.metricsPort) (int .Values.healthPort) }}
{{- if .Values.adminEnabled }}
{{- $ports = append $ports (int .Values.adminPort) }}
{{- end }}
{{- if ne (len $ports) (len (uniq $ports)) }}
{{- fail "grpcPort, metricsPort, healthPort and adminPort: give different ports" }}
{{- end }}
{{- $taken := list "/tmp" "/dev/shm" }}
{{- range $key := list "modelsMountPath" "indexesMountPath" "feedbackMountPath" }}
{{- $path := clean (get $.Values $key) }}
{{- if or (has $path $taken) (hasPrefix "/etc/tuneserve" $path) }}
{{- fail (printf "%s: something else is mounted at %s, give another directory" $key $path) }}
{{- end }}
{{- $taken = append $taken $path }}
{{- end }}
{{- if and .Values.clientCaSecret (not .Values.tlsSecret) }}
{{- fail "clientCaSecret: needs tlsSecret, because certificates are part of TLS" }}
{{- end }}
{{- if gt (int .Values.nodes) 1 }}
{{- if gt (len .Values.models) 1 }}
{{- fail "nodes: needs exactly one model in models, which the machines share" }}
{{- end }}
{{- $engine := default dict (first (values .Values.models)).engine }}
{{- if mod (mul (dig "tensor_parallel_size" 1 $engine) (dig "pipeline_parallel_size" 1 $engine)) .Values.nodes }}
{{- fail (printf "nodes: %d must divide tensor_parallel_size × pipeline_parallel_size of the model's engine" (int .Values.nodes)) }}
{{- end }}
{{- if ne .Values.onEngineFailure "exit" }}
{{- fail "nodes: needs onEngineFailure to be exit, because an engine starts again only with new pods on all its machines" }}
{{- end }}
{{- if gt (int .Values.processes) 1 }}
{{- fail "nodes: needs processes to be 1, because there is one engine on all machines" }}
{{- end }}
{{- if .Values.reloadModels }}
{{- fail "nodes: needs reloadModels to be false, because the other machines load nothing while they run" }}
{{- end }}
{{- if .Values.networkPolicyEnabled }}
{{- fail "nodes: needs networkPolicyEnabled to be false, because the machines of an engine call each other on many ports" }}
{{- end }}
{{- end }}
{{- if and .Values.reloadModels (gt (int .Values.processes) 1) }}
{{- fail "reloadModels: needs processes to be 1, because several processes do not follow their file" }}
{{- end }}
{{- if .Values.kedaEnabled }}
{{- if .Values.autoscalingEnabled }}
{{- fail "kedaEnabled and autoscalingEnabled: give one of them, because each makes a HorizontalPodAutoscaler" }}
{{- end }}
{{- if not .Values.kedaPrometheusAddress }}
{{- fail "kedaPrometheusAddress: needed with kedaEnabled, e.g. http://prometheus.monitoring:9090" }}
{{- end }}
{{- if gt (int .Values.kedaMinReplicas) (int .Values.kedaMaxReplicas) }}
{{- fail "kedaMinReplicas: must not be more than kedaMaxReplicas" }}
{{- end }}
{{- if not (or .Values.kedaMinReplicas .Values.kedaActivationQuery) }}
{{- fail "kedaActivationQuery: needed with kedaMinReplicas 0, because without a pod there are no metrics of the server" }}
{{- end }}
{{- end }}
{{- if .Values.grpcRouteEnabled }}
{{- if not .Values.grpcRouteParents }}
{{- fail "grpcRouteParents: needed with grpcRouteEnabled, e.g. [{name: gateway, namespace: gateways}]" }}
{{- end }}
{{- $sections := dict }}
{{- range .Values.grpcRouteParents }}
{{- $parent := printf "%s/%s" (default "" .namespace) .name }}
{{- $_ := set $sections $parent (append (get $sections $parent | default list) (default "" .sectionName)) }}
{{- end }}
{{- range $parent, $names := $sections }}
{{- if and (gt (len $names) 1) (or (has "" $names) (ne (len $names) (len (uniq $names)))) }}
{{- fail (printf "grpcRouteParents: needs another sectionName for each reference to %s" (base $parent)) }}
{{- end }}
{{- end }}
{{- $weights := .Values.grpcRouteWeight }}
{{- range .Values.grpcRouteCanaries }}
{{- $weights = add $weights . }}
{{- end }}
{{- if not $weights }}
{{- fail "grpcRouteWeight: must be more than 0 if no Service of grpcRouteCanaries has a weight" }}
{{- end }}
{{- if hasKey .Values.grpcRouteCanaries (include "tuneserve.fullname" .) }}
{{- fail "grpcRouteCanaries: must not name this release's own Service; its weight is grpcRouteWeight" }}
{{- end }}
{{- end }}
{{- if .Values.inferencePoolEnabled }}
{{- if not .Values.inferencePoolPicker }}
{{- fail "inferencePoolPicker: needed with inferencePoolEnabled, the Service of an endpoint picker" }}
{{- end }}
{{- if .Values.tlsSecret }}
{{- fail "inferencePoolEnabled: needs tlsSecret to be empty, because a gateway calls the pods of a pool in plaintext" }}
{{- end }}
{{- if gt (len .Values.models) 1 }}
{{- fail "inferencePoolEnabled: needs exactly one model in models, because an endpoint picker reads one value of a metric" }}
{{- end }}
{{- end }}
{{- $jobs := dict "finetuneConfig" .Values.finetuneConfig "quantizeSource" .Values.quantizeSource "predictCheckpoint" .Values.predictCheckpoint "retrainPolicy" .Values.retrainPolicy }}
{{- range $key, $job := $jobs }}
{{- if and $job (not $.Values.modelsClaim) }}
{{- fail (printf "%s: needs modelsClaim, where the Job writes" $key) }}
{{- end }}
{{- end }}
{{- if and .Values.predictCheckpoint (not .Values.predictRows) }}
{{- fail "predictRows: needed with predictCheckpoint" }}
{{- end }}
{{- $files := dict }}
{{- with .Values.finetuneConfig }}
{{- $_ := set $files "finetuneConfig.output" .output }}
{{- end }}
{{- with .Values.retrainPolicy }}
{{- $_ := set $files "retrainPolicy.output" .output }}
{{- end }}
{{- if .Values.quantizeSource }}
{{- $files = merge $files (pick .Values "quantizeSource" "quantizeOutput") }}
{{- end }}
{{- if .Values.predictCheckpoint }}
{{- $files = merge $files (pick .Values "predictCheckpoint" "predictRows" "predictOutput") }}
{{- end }}
{{- $below := printf "%s/" (clean .Values.modelsMountPath) }}
{{- range $key, $path := $files }}
{{- if not (hasPrefix $below (clean (toString $path))) }}
{{- fail (printf "%s: must begin with %s, where the Job mounts modelsClaim" $key $below) }}
{{- end }}
{{- end }}
{{- range $read, $written := dict "quantizeSource" "quantizeOutput" "predictRows" "predictOutput" }}
{{- if and (hasKey $files $read) (eq (clean (get $files $read)) (clean (get $files $written))) }}
{{- fail (printf "%s: must not be %s, because a Job overwrites nothing" $written $read) }}
{{- end }}
{{- end }}
{{- with .Values.retrainPolicy }}
{{- if not $.Values.feedbackClaim }}
{{- fail "retrainPolicy: needs feedbackClaim, which it reads" }}
{{- end }}
{{- $below := printf "%s/" (clean $.Values.feedbackMountPath) }}
{{- if not (hasPrefix $below (clean (toString .feedback))) }}
{{- fail (printf "retrainPolicy.feedback: must begin with %s, where the Job mounts feedbackClaim" $below) }}
{{- end }}
{{- end }}
{{- if and .Values.modelsRoot (or .Values.modelsClaim .Values.modelsVolume .Values.fetch) }}
{{- $mounted := clean .Values.modelsMountPath }}
{{- if not (hasPrefix (printf "%s/" $mounted) (printf "%s/" (clean .Values.modelsRoot))) }}
{{- fail (printf "modelsRoot: must be %s or below it, where the pods mount their models" $mounted) }}
{{- end }}
{{- end }}
{{- $ends := int (include "tuneserve.endSeconds" .) }}
{{- if and .Values.terminationGraceSeconds (lt (int .Values.terminationGraceSeconds) $ends) }}
{{- fail (printf "terminationGraceSeconds: must be at least %d, for preStopSeconds + lingerSeconds + drainSeconds + 25 s to stop the engines" $ends) }}
{{- end }}
{{- if not (add .Values.preStopSeconds .Values.lingerSeconds) }}
{{- fail "preStopSeconds and lingerSeconds: must not both be 0, because calls still come while the pod is removed from the endpoints" }}
{{- end }}
{{- range $name, $model := .Values.models }}
{{- $adapters := len (default dict $model.adapters) }}
{{- if lt (int $model.maxAdapters) $adapters }}
{{- fail (printf "models.%s.maxAdapters: must be at least %d, one for each of its adapters" $name $adapters) }}
{{- end }}
{{- end }}
{{- if .Values.fetch }}
{{- if or .Values.modelsClaim .Values.modelsVolume }}
{{- fail "fetch: needs modelsClaim and modelsVolume to be empty, because each pod fetches to its own disk" }}
{{- end }}
{{- if .Values.reloadModels }}
{{- fail "fetch: needs reloadModels to be false, because running pods fetch nothing" }}
{{- end }}
{{- range $name, $model := .Values.models }}
{{- if not (has $model.path (include "tuneserve.fetched" $ | fromYamlArray)) }}
{{- fail (printf "models.%s.path: %s is not fetched; fetch has %s" $name $model.path (include "tuneserve.fetched" $ | fromYamlArray | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $alias, $route := .Values.aliases }}
{{- range $target := concat (keys $route.targets) (compact (list $route.shadow)) }}
{{- if not (hasKey $.Values.models $target) }}
{{- fail (printf "aliases.%s: %s is not one of models" $alias $target) }}
{{- end }}
{{- end }}
{{- if not $route.targets }}
{{- fail (printf "aliases.%s.targets: name at least one" $alias) }}
{{- end }}
{{- if hasKey $route.targets (toString $route.shadow) }}
{{- fail (printf "aliases.%s.shadow: %s is also a target" $alias $route.shadow) }}
{{- end }}
{{- end }}
{{- range $name, $monitor := .Values.monitors }}
{{- range $model := list $monitor.topic $monitor.sentiment }}
{{- if not (or (hasKey $.Values.models $model) (hasKey $.Values.aliases $model)) }}
{{- fail (printf "monitors.%s: %s is not one of models or aliases" $name $model) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.indexes (not .Values.indexesClaim) }}
{{- fail "indexes: needs indexesClaim, a volume that outlives the pods" }}
{{- end }}
{{- range $name, $index := .Values.indexes }}
{{- range $model := compact (list $index.embedding $index.ranking $index.generation) }}
{{- if not (hasKey $.Values.models $model) }}
{{- fail (printf "indexes.%s: %s is not one of models" $name $model) }}
{{- end }}
{{- end }}
{{- if not (hasPrefix (printf "%s/" (trimSuffix "/" $.Values.indexesMountPath)) $index.path) }}
{{- fail (printf "indexes.%s.path: %s is not below indexesMountPath" $name $index.path) }}
{{- end }}
{{- if and $index.gate (not (hasPrefix (printf "%s/" (trimSuffix "/" $.Values.indexesMountPath)) $index.gate)) }}
{{- fail (printf "indexes.%s.gate: %s is not below indexesMountPath" $name $index.gate) }}
{{- end }}
{{- end }}
{{- /* An expression that can't be parsed matches nothing. */}}
{{- if not (regexMatch (printf "%s|" .Values.prometheusRuleNegative) "") }}
{{- fail (printf "prometheusRuleNegative: %s is not a regular expression" .Values.prometheusRuleNegative) }}
{{- end }}
{{- if .Values.autoscalingEnabled }}
{{- if gt (int .Values.autoscalingMinReplicas) (int .Values.autoscalingMaxReplicas) }}
{{- fail "autoscalingMinReplicas: must not be more than autoscalingMaxReplicas" }}
{{- end }}
{{- $given := merge dict (default dict .Values.resources.requests) (default dict .Values.resources.limits) }}
{{- range .Values.autoscalingMetrics }}
{{- $resource := default dict .resource }}
{{- if and (eq (dig "target" "type" "" $resource) "Utilization") (not (hasKey $given $resource.name)) }}
{{- fail (printf "autoscalingMetrics: Utilization of %s needs resources.requests.%s, of which it is a share" $resource.name $resource.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
