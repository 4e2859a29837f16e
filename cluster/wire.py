"""JSON models of the service's requests and responses, with their limits."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from memory_builder.base.arguments import one_modality

MAX_QUERIES = 1_000
"""Limit of queries in a JSON request."""


MAX_WIDTH = 16_384
"""Limit of a vector's width in a JSON request."""


MAX_WHERE = 10_000
"""Limit of a filter's length: parsing takes some 10 ms for each thousand characters and blocks other requests."""


FORMER_NAME = "former name of modality, for one more version"


LARGEST = (1 << 31) - 1


Value = TypeVar("Value")


Several = Annotated[list[Value], Field(min_length=1, max_length=MAX_QUERIES)]


Vector = Annotated[list[float], Field(min_length=1, max_length=MAX_WIDTH)]


class Settings(BaseModel):
    """Arguments of ``Memory.search`` of these names."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, description="rows to retrieve for each query")] = 10
    modality: Annotated[Literal["image", "text"], Field(description="modality of the vectors to search")] = "image"
    keys: Annotated[
        Literal["image", "text"] | None,
        Field(description=FORMER_NAME, json_schema_extra={"deprecated": True}),
    ] = None
    query_modality: Annotated[
        Literal["image", "text"] | None, Field(description="modality that bare vectors are embeddings of")
    ] = None
    side: Annotated[
        Literal["image", "text"] | None,
        Field(
            description="former name of query_modality, for one more version", json_schema_extra={"deprecated": True}
        ),
    ] = None
    where: Annotated[
        str | None,
        Field(max_length=MAX_WHERE, description="filter over metadata columns", examples=["width >= 256"]),
    ] = None
    nprobe: Annotated[int | None, Field(ge=1, le=LARGEST, description="inverted lists to scan")] = None
    refine: Annotated[int | None, Field(ge=0, le=LARGEST, description="candidates to re-rank for each row")] = None

    @model_validator(mode="after")
    def _take_former_names(self) -> "Settings":
        if self.keys is not None:
            self.modality = one_modality(self.modality if "modality" in self.model_fields_set else None, self.keys)
            self.keys = None
        self.query_modality = self.query_modality or self.side
        self.side = None
        return self


class Question(Settings):
    """Body of ``POST /search``: exactly one of text, image and vectors."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"text": "a red panda", "k": 3}})

    # A missing field is None; null is not accepted.
    text: Annotated[str | Several[str], Field(None, description="query texts")]
    image: Annotated[str | Several[str], Field(None, description="query pictures: encoded files in base64")]
    vectors: Annotated[Several[Vector], Field(None, description="query vectors of the memory's width")]

    @staticmethod
    def described(d: int, max_k: int) -> dict[str, Any]:
        """Return the JSON schema for a memory of this width."""
        schema = Question.model_json_schema()
        for name in ("text", "image", "vectors"):
            schema["properties"][name].pop("default", None)
        schema["properties"]["vectors"]["items"] |= {"minItems": d, "maxItems": d}
        schema["properties"]["k"]["maximum"] = max_k
        return schema | {"oneOf": [{"required": [name]} for name in ("text", "image", "vectors")]}


class Hit(BaseModel):
    """A retrieved row."""

    id: int
    score: float
    key: str | None
    caption: str | None
    url: str | None
    path: str | None = Field(description="source of the row, if it is a file")


class Answer(BaseModel):
    """Hits of one query, best first."""

    query: int
    hits: list[Hit]


class Answers(BaseModel):
    """Response of ``POST /search``."""

    queries: list[Answer]
    stated: dict[str, float] | None = Field(description="recall measured for such queries")
    snapshot: int = Field(description="number of the searched snapshot")


class Info(BaseModel):
    """Response of ``GET /info``."""

    rows: int
    indexes: dict[str, Any]
    description: dict[str, Any]
    snapshot: dict[str, Any]
