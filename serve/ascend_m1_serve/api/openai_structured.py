"""What an answer must look like: OpenAI's ``response_format``, vLLM's ``structured_outputs`` and older ``guided_…``."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ascend_m1.errors import InputError

from ..front import check_unicode
from ..protocol import Grammar

# Of vLLM's, those that say nothing about the answer: JSON never has white space to choose here.
_HARMLESS = {"disable_any_whitespace", "disable_fallback"}


class JsonSchema(BaseModel):
    """Of ``response_format``."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """Raises InputError for a schema that is not there."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_object")
        if self.json_schema is None or self.json_schema.definition is None:
            raise InputError("response_format.json_schema.schema: give the schema of the answer")
        return Grammar("json_schema", json.dumps(self.json_schema.definition))


class StructuredOutputs(BaseModel):
    """vLLM's; one of them."""

    model_config = ConfigDict(populate_by_name=True, extra="allow")

    definition: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    json_object: bool | None = None

    def one(self, field: str) -> Grammar:
        """Raises InputError if there is none, several, or another of vLLM's options.

        Args:
            field: the request's, for the message.
        """
        others = [name for name, value in (self.model_extra or {}).items() if value and name not in _HARMLESS]
        if others:
            raise InputError(f"{field}: {others[0][:40]} is not supported: give one of json, regex, choice, grammar, "
                             "json_object")  # fmt: skip
        found = []
        if self.definition is not None:
            text = self.definition if isinstance(self.definition, str) else json.dumps(self.definition)
            found.append(Grammar("json_schema", text))
        if self.regex is not None:
            found.append(Grammar("regex", self.regex))
        if self.choice is not None:
            found.append(Grammar("regex", "|".join(map(re.escape, self.choice))))
        if self.grammar is not None:
            found.append(Grammar("grammar", self.grammar))
        if self.json_object:
            found.append(Grammar("json_object"))
        if len(found) != 1:
            raise InputError(f"{field}: give one of json, regex, choice, grammar, json_object")
        return found[0]


class Structured(BaseModel):
    """The fields of a request."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1)
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: str | None = None

    def grammar_of_answer(self) -> Grammar | None:
        """Raises InputError if it is said twice, half, or not to be had."""
        found = []
        if self.response_format is not None:
            found.append(self.response_format.grammar())
        if self.structured_outputs is not None:
            found.append(self.structured_outputs.one("structured_outputs"))
        given = [(name, value) for name, value in self if name.startswith("guided_") and value not in (None, False)]
        older = {name.removeprefix("guided_"): value for name, value in given}
        if older:
            found.append(StructuredOutputs.model_validate(older).one("guided_…"))
        asked = [grammar for grammar in found if grammar is not None]
        if len(asked) > 1:
            raise InputError("response_format, structured_outputs and guided_…: give one of them")
        for grammar in asked:
            check_unicode(grammar.text)
        return asked[0] if asked else None
