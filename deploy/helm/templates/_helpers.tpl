{{- define "monitor.name" -}}
{{ printf "%s-celery-monitor" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "monitor.labels" -}}
app.kubernetes.io/name: celery-monitor
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Of the pods of one part: called with the root and the part. */}}
{{- define "monitor.selector" -}}
app.kubernetes.io/name: celery-monitor
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{/* A value as text: Helm's numbers are floats, and 1000000 would be 1e+06. */}}
{{- define "monitor.text" -}}
{{- if and (kindIs "float64" .) (eq (. | int64 | float64) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{/* The pod of a part, which runs serve, receive or web. */}}
{{- define "monitor.pod" -}}
{{- $values := .root.Values -}}
{{- $keys := $values.secretKeys -}}
{{- if $values.postgresql }}{{ $keys = append $keys "database" | uniq }}{{ end -}}
metadata:
  labels:
    {{- include "monitor.selector" . | nindent 4 }}
spec:
  automountServiceAccountToken: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile: {type: RuntimeDefault}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .part }}
      image: "{{ $values.image.repository }}:{{ $values.image.tag | default .root.Chart.AppVersion }}"
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [{{ .command }}]
      env:
        {{- range $keys }}
        - {name: CELERY_MONITOR_{{ upper . }}_FILE, value: /run/secrets/celery-monitor/{{ . }}}
        {{- end }}
        {{- with $values.urlPrefix }}
        - {name: CELERY_MONITOR_URL_PREFIX, value: {{ . | quote }}}
        {{- end }}
        {{- if $values.ingress.enabled }}
        - {name: CELERY_MONITOR_TRUSTED_HOSTS, value: {{ $values.ingress.host | quote }}}
        {{- end }}
        {{- with $values.trustedProxies }}
        - {name: CELERY_MONITOR_TRUSTED_PROXIES, value: {{ join " " . | quote }}}
        {{- end }}
        {{- range $name, $value := $values.settings }}
        - {name: CELERY_MONITOR_{{ upper $name }}, value: {{ include "monitor.text" $value | quote }}}
        {{- end }}
      {{- if ne .command "receive" }}
      ports:
        - {name: http, containerPort: 5555}
      livenessProbe:
        httpGet: {path: {{ $values.urlPrefix }}/livez, port: http}
        periodSeconds: 20
      readinessProbe:
        httpGet: {path: {{ $values.urlPrefix }}/readyz, port: http}
        periodSeconds: 10
      {{- end }}
      resources: {{- toYaml .resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
        - {name: secrets, mountPath: /run/secrets/celery-monitor, readOnly: true}
  volumes:
    {{- if ne .command "serve" }}
    - {name: data, emptyDir: {}}
    {{- end }}
    - {name: tmp, emptyDir: {}}
    - name: secrets
      secret:
        secretName: {{ $values.existingSecret }}
        defaultMode: 0440
        items:
          {{- range $keys }}
          - {key: {{ . }}, path: {{ . }}}
          {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
