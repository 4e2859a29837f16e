"""The JSON bodies of the service: requests and answers, with their bounds."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from memory_builder.base.arguments import one_modality

MAX_QUERIES = 1_000
"""A request in JSON."""


MAX_WIDTH = 16_384
"""Numbers of a vector there."""


MAX_WHERE = 10_000
"""Characters of a filter: its parser takes some 10 ms for each thousand, and lets no one else work meanwhile."""


FORMER_NAME = "former name of modality, for one more version"


LARGEST = (1 << 31) - 1


Value = TypeVar("Value")


Several = Annotated[list[Value], Field(min_length=1, max_length=MAX_QUERIES)]


Vector = Annotated[list[float], Field(min_length=1, max_length=MAX_WIDTH)]


class Settings(BaseModel):
    """How to search: the arguments of ``Memory.search`` of these names."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, description="rows a query")] = 10
    modality: Annotated[Literal["image", "text"], Field(description="of the vectors that are searched")] = "image"
    keys: Annotated[
        Literal["image", "text"] | None,
        Field(description=FORMER_NAME, json_schema_extra={"deprecated": True}),
    ] = None
    query_modality: Annotated[
        Literal["image", "text"] | None, Field(description="what bare vectors are embeddings of")
    ] = None
    side: Annotated[
        Literal["image", "text"] | None,
        Field(
            description="former name of query_modality, for one more version", json_schema_extra={"deprecated": True}
        ),
    ] = None
    where: Annotated[
        str | None,
        Field(max_length=MAX_WHERE, description="filter over the metadata", examples=["width >= 256"]),
    ] = None
    nprobe: Annotated[int | None, Field(ge=1, le=LARGEST, description="inverted lists to scan")] = None
    refine: Annotated[int | None, Field(ge=0, le=LARGEST, description="candidates to rescore for each row")] = None

    @model_validator(mode="after")
    def _take_former_names(self) -> "Settings":
        if self.keys is not None:
            self.modality = one_modality(self.modality if "modality" in self.model_fields_set else None, self.keys)
            self.keys = None
        self.query_modality = self.query_modality or self.side
        self.side = None
        return self


class Question(Settings):
    """``POST /search``: exactly one of text, image and vectors."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"text": "a red panda", "k": 3}})

    # One that is not given is None; null is no way of giving it.
    text: Annotated[str | Several[str], Field(None, description="one text, or several")]
    image: Annotated[str | Several[str], Field(None, description="encoded pictures, in base64")]
    vectors: Annotated[Several[Vector], Field(None, description="of the memory's width")]

    @staticmethod
    def described(d: int, max_k: int) -> dict[str, Any]:
        """As JSON schema, for a memory of this width."""
        schema = Question.model_json_schema()
        for name in ("text", "image", "vectors"):
            schema["properties"][name].pop("default", None)
        schema["properties"]["vectors"]["items"] |= {"minItems": d, "maxItems": d}
        schema["properties"]["k"]["maximum"] = max_k
        return schema | {"oneOf": [{"required": [name]} for name in ("text", "image", "vectors")]}


class Hit(BaseModel):
    """A row that was found."""

    id: int
    score: float
    key: str | None
    caption: str | None
    url: str | None
    path: str | None = Field(description="where the row came from, if it is a file")


class Answer(BaseModel):
    """The rows of one query, best first."""

    query: int
    hits: list[Hit]


class Answers(BaseModel):
    """What ``POST /search`` says."""

    queries: list[Answer]
    stated: dict[str, float] | None = Field(description="recall that was measured for such queries")
    snapshot: int = Field(description="state of the memory that was asked")


class Info(BaseModel):
    """What ``GET /info`` says."""

    rows: int
    indexes: dict[str, Any]
    description: dict[str, Any]
    snapshot: dict[str, Any]
