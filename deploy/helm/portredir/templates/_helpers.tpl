{{/* The address of probes: an IPv6 address stands in brackets. */}}
{{- define "portredir.listen" -}}
{{- if contains ":" .Values.listen.host -}}
[{{ .Values.listen.host }}]:{{ .Values.listen.port }}
{{- else -}}
{{ .Values.listen.host }}:{{ .Values.listen.port }}
{{- end -}}
{{- end -}}
