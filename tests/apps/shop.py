"""A service with jobs of all kinds, for clients that know nothing but its OpenAPI document."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from lro import AllowAnonymous, Code, Context, OperationError, Service, SyncContext, job


class Binding(StrEnum):
    PAPER = "PAPER"
    CLOTH = "CLOTH"


class Author(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=40)
    height: float | None = Field(default=None, ge=0, le=3, strict=True)


class Chapter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["chapter"]
    pages: float = Field(ge=1, le=500, strict=True)


class Picture(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["picture"]
    width: float = Field(gt=0, le=1000, strict=True)


class Book(BaseModel):
    model_config = ConfigDict(extra="forbid")

    book_title: str = Field(alias="bookTitle", min_length=1, max_length=80)
    authors: list[Author] = Field(default=[], max_length=5)
    parts: list[Annotated[Chapter | Picture, Field(discriminator="kind")]] = Field(default=[], max_length=8)
    binding: Binding = Binding.PAPER
    flags: list[StrictBool | None] = Field(default=[], max_length=4)


class Progress(BaseModel):
    parts_done: int = 0


class Bound(BaseModel):
    url: str


@job("books.bind")
async def bind(ctx: Context[Progress], params: Book) -> Bound:
    """Bind a book.

    Saves its progress after each part.
    """
    for number in range(len(params.parts)):
        await ctx.checkpoint(Progress(parts_done=number + 1))
    return Bound(url=f"/books/{ctx.name}")


class Nap(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(default=0.01, ge=0, le=0.5, strict=True)


@job("naps.take")
async def nap(ctx: Context, params: Nap) -> None:
    """Sleep for a while."""
    await ctx.sleep(params.seconds)


@job("books.lose")
async def lose(ctx: Context) -> None:
    del ctx
    raise OperationError(Code.DATA_LOSS, "the book is lost", reason="BOOK_LOST")


@job("numbers.add")
def add(ctx: SyncContext, params: Nap) -> list[float]:
    del ctx
    return [params.seconds, 1.0]


@job("naps.alone", parallel="allow", timeout=None)
async def alone(ctx: Context) -> str:
    await ctx.sleep(0.01)
    return "awake"


service = Service(
    "sqlite:///shop.db", jobs=[bind, nap, lose, add, alone], auth=AllowAnonymous(), domain="books.example.com"
)
app = service.app()
