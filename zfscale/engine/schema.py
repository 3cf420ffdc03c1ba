"""The JSON Schema of a job file, for editors and for `zfscale schema`."""

from __future__ import annotations

from typing import Any

from zfscale import analyses
from zfscale.job import Job


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, with the options of every kind of analysis."""
    document = Job.model_json_schema()
    described, definitions = {}, document.setdefault("$defs", {})
    for kind in analyses.names():
        if kind != "index":
            # Two kinds may call different things by one name.
            place = f"#/$defs/{kind}.{{model}}"
            options = analyses.load(kind).Options.model_json_schema(ref_template=place)
            for model, schema in options.pop("$defs", {}).items():
                definitions[f"{kind}.{model}"] = schema
            described[kind] = options
    common = {
        "needs": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Which analysis of the run serves each kind that this one needs.",
        }
    }

    def of_kind(kind: str, use: dict[str, Any], required: list[str]) -> dict[str, Any]:
        schema = described[kind]
        properties = {"use": use | {"const": kind}} | common | schema.get("properties", {})
        empty = [] if required else ["null"]
        return schema | {
            "type": ["object", *empty],
            "properties": properties,
            "required": [*required, *schema.get("required", ())],
        }

    says = {"description": "The kind of this analysis; left out, its name says it."}
    document["properties"]["analyses"] |= {
        "properties": {kind: of_kind(kind, says, []) for kind in described},
        "additionalProperties": {"oneOf": [of_kind(kind, says, ["use"]) for kind in described]},
    }
    return document
