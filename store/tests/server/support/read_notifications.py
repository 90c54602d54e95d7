"""Reads notifications as others do: OTLP by OpenTelemetry's own protocol buffers, OCSF by a library's model of the class.

Standard input: {"otlp": ..., "ocsf": ...}. Standard output: what they understood.
"""

import json
import sys

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from py_ocsf_models.events.findings.detection_finding import DetectionFinding

given = json.load(sys.stdin)

# Unknown fields and wrong types are errors.
request = ParseDict(given["otlp"], ExportLogsServiceRequest())
(resource,) = request.resource_logs
(scope,) = resource.scope_logs
(record,) = scope.log_records


def value(any_value):
    kind = any_value.WhichOneof("value")
    found = getattr(any_value, kind)
    return [value(item) for item in found.values] if kind == "array_value" else found


finding = DetectionFinding.model_validate(given["ocsf"])
json.dump(
    {
        "otlp": {
            "service": {item.key: value(item.value) for item in resource.resource.attributes}["service.name"],
            "time_ns": record.time_unix_nano,
            "severity": record.severity_number,
            "event": record.event_name,
            "body": record.body.string_value,
            "attributes": {item.key: value(item.value) for item in record.attributes},
        },
        "ocsf": json.loads(finding.model_dump_json(exclude_none=True, exclude={"unmapped"})),
    },
    sys.stdout,
)
