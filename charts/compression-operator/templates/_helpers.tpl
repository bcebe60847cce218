{{/* Names leave room for suffixes: a label's value and a Service's name end at 63 characters. */}}
{{- define "compression-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "compression-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "compression-operator.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Objects without a namespace carry the release's, so that releases of one name in two namespaces don't meet. */}}
{{- define "compression-operator.clusterName" -}}
{{- printf "%s.%s" (include "compression-operator.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "compression-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "compression-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "compression-operator.labels" -}}
{{- $ours := dict
  "app.kubernetes.io/name" (include "compression-operator.name" .)
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/component" "operator"
  "app.kubernetes.io/part-of" "compression-operator"
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63) -}}
{{- merge $ours .Values.commonLabels | toYaml -}}
{{- end -}}

{{- define "compression-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "compression-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- if has .Values.serviceAccount.name (list "" "default") -}}
{{- fail "serviceAccount.name must name an account of the operator's own where serviceAccount.create is false: what is given to `default` is given to every pod of the namespace that names no account" -}}
{{- end -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Of (dict "value" NAME_OF_THE_VALUE "folder" FOLDER_OF_IMAGES "root" $). */}}
{{- define "compression-operator.image" -}}
{{- $image := get .root.Values .value -}}
{{- if not $image.repository -}}
{{- fail (printf "%s.repository is not set: build images/%s/Containerfile, push it, and say where it is, e.g. --set %s.repository=registry.example.com/compression-%s" .value .folder .value .folder) -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A text as CEL writes it. */}}
{{- define "compression-operator.celText" -}}
{{- printf "'%s'" (. | replace "\\" "\\\\" | replace "'" "\\'") -}}
{{- end -}}

{{/* The images that runs may name, as a CEL list of regular expressions: shapes.pattern_regex in the operator's words. */}}
{{- define "compression-operator.imageRegexes" -}}
{{- $texts := list -}}
{{- range .Values.jobs.allowedImages -}}
{{- $regex := regexQuoteMeta . | replace "\\*" ".*" | replace "\\?" "." -}}
{{- $texts = append $texts (include "compression-operator.celText" (printf "^%s$" $regex)) -}}
{{- end -}}
{{- printf "[%s]" (join ", " $texts) -}}
{{- end -}}

{{/* Milliseconds of a duration as Prometheus writes it, e.g. 1m30s. */}}
{{- define "compression-operator.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 -}}
{{- $sum = add $sum (mul (regexFind "[0-9]+" . | int64) (get $units (regexFind "[a-z]+" .))) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* What the operator does in the namespaces that it watches: kinds.PERMISSIONS and network_policy.PERMISSION, verb by verb (a test compares). */}}
{{- define "compression-operator.rules" -}}
- apiGroups: [modelcompression.io]
  resources: [compressionruns]
  verbs: [get, list, watch]
- apiGroups: [modelcompression.io]
  resources: [compressionruns/status, compressionruns/finalizers]
  verbs: [update]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, create, patch]
{{- if .Values.jobs.networkPolicy }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create]
{{- end }}
{{- end -}}
