"""Whatever is done to the graph, it answers as a model does, and its log makes the same tables again."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_common.errors import OperationalError
from ksi_common.events.graph import (
    BulkCreateEntities,
    ByProperty,
    Count,
    CreateEntity,
    CreateRelationship,
    DeleteEntity,
    DeleteRelationship,
    NewEntity,
    QueryEntities,
    QueryRelationships,
    Traverse,
    UpdateEntity,
)
from ksi_common.events.properties import Condition, Value
from ksi_daemon.database import Database
from ksi_graph import changing, reading, selecting, traversing
from tests.support.databases import Heard, looking, opened
from tests.support.graph_model import GraphModel, contents, exactly, fits, rank, replayed
from tests.support.scale import scaled

IDS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
TYPES = st.sampled_from(["x", "y", "z"])
NAMES = st.sampled_from(["p", "q", "r"])
EACH: Final = (None, True, False, 0, 1, 2, 0.0, -0.0, 1.0, 1.5, "", "a", "ab", "1", "a\0b", "é")
VALUES = st.sampled_from(EACH)
BOUNDS = VALUES.filter(lambda value: not (value is None or isinstance(value, bool)))
PROPERTIES = st.dictionaries(NAMES, VALUES, min_size=1, max_size=3)
VERSIONS = st.none() | st.integers(1, 3)

# Most entities are there from the beginning, or few questions would find any.
founders = st.fixed_dictionaries(
    {
        ident: st.builds(CreateEntity, id=st.just(ident), type=TYPES, properties=PROPERTIES)
        for ident in "abcdef"
    }
)
new = st.builds(NewEntity, id=IDS, type=TYPES, properties=PROPERTIES)
request = st.one_of(
    st.builds(CreateEntity, id=IDS, type=TYPES, properties=PROPERTIES),
    st.builds(BulkCreateEntities, entities=st.lists(new, min_size=1, max_size=4)),
    st.builds(
        lambda properties, remove, **rest: UpdateEntity(
            properties=properties, remove=[name for name in remove if name not in properties], **rest
        ),
        id=IDS, properties=PROPERTIES, remove=st.lists(NAMES, max_size=2), expected_version=VERSIONS,
    ),
    st.builds(DeleteEntity, id=IDS, expected_version=VERSIONS),
    st.builds(CreateRelationship, type=TYPES, from_=IDS, to=IDS, properties=PROPERTIES),
    st.builds(CreateRelationship, type=TYPES, from_=IDS, to=IDS, properties=PROPERTIES),
    st.builds(DeleteRelationship, type=TYPES, from_=IDS, to=IDS),
)  # fmt: skip
respect = st.one_of(
    st.tuples(st.sampled_from(["eq", "ne"]), VALUES),
    st.tuples(st.sampled_from(["lt", "lte", "gt", "gte"]), BOUNDS),
    st.tuples(st.just("in_"), st.lists(VALUES, max_size=4)),
    st.tuples(st.just("contains"), st.sampled_from(["", "a", "b", "\0"])),
    st.tuples(st.just("exists"), st.booleans()),
)
condition = st.lists(respect, min_size=1, max_size=2).map(lambda given: Condition(**dict(given)))
where = st.dictionaries(NAMES, VALUES | condition, max_size=2)
query = st.builds(
    QueryEntities,
    type=st.none() | TYPES,
    where=where,
    order_by=st.none() | NAMES,
    descending=st.booleans(),
    limit=st.integers(1, 4),
)
traversal = st.builds(
    Traverse,
    start=IDS,
    direction=st.sampled_from(["outgoing", "incoming", "both"]),
    types=st.lists(TYPES, max_size=2),
    depth=st.integers(1, 5),
    paths=st.just(True),
    properties=st.just(True),
)


@pytest.mark.timeout(scaled(120, 900))
@pytest.mark.parametrize("probed", [0, 2, selecting.PROBED])
def test_the_graph_answers_as_a_model_does_and_its_log_makes_it_again(
    probed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selecting, "PROBED", probed)  # so few rows that every way to an answer is taken

    @settings(max_examples=scaled(40, 500), deadline=None)
    @given(
        founded=founders,
        requests=st.lists(request, max_size=30),
        queries=st.lists(query, min_size=5, max_size=15),
        traversals=st.lists(traversal, min_size=2, max_size=4),
    )
    def check(
        founded: dict[str, CreateEntity],
        requests: list[Any],
        queries: list[QueryEntities],
        traversals: list[Traverse],
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ksi-"))
        try:
            asyncio.run(history(folder, [*founded.values(), *requests], queries, traversals))
        finally:
            shutil.rmtree(folder)

    check()


async def history(
    folder: Path, requests: Sequence[Any], queries: Sequence[QueryEntities], traversals: Sequence[Traverse]
) -> None:
    heard, model = Heard(), GraphModel()
    async with asyncio.timeout(60), opened(folder, heard, plugins=["ksi_graph"]) as database:
        begun = [(wanted, begin(database, wanted)) for wanted in requests]
        for wanted, done in begun:
            assert await outcome(done) == expected(model, wanted), wanted
        for question in queries:
            await check_query(database, model, question)
        for walk in traversals:
            await check_traversal(database, model, walk)
        await check_relationships(database, model, queries)
        with looking(database.path) as connection:
            assert replayed(heard.events) == contents(connection)


def begin(database: Database, wanted: Any) -> "asyncio.Future[Any]":
    """Hand a unit to the writer; units are done in the order handed over."""
    units: Mapping[type[Any], Callable[..., Any]] = {
        CreateEntity: changing.create,
        BulkCreateEntities: changing.bulk_create,
        UpdateEntity: changing.update,
        DeleteEntity: changing.delete,
        CreateRelationship: changing.relate,
        DeleteRelationship: changing.unrelate,
    }
    return database.write(partial(units[type(wanted)], wanted))


async def outcome(done: "asyncio.Future[Any]") -> str:
    """Give the status, or the reason why not."""
    try:
        return str((await done).status)
    except OperationalError as error:
        return str(error.details["reason"])


def expected(model: GraphModel, wanted: Any) -> str:
    match wanted:
        case BulkCreateEntities():
            return model.bulk_create(wanted.entities)
        case UpdateEntity():
            return model.update(wanted)
        case DeleteEntity():
            return model.delete(wanted)
        case CreateRelationship():
            return model.relate(wanted)
        case DeleteRelationship():
            return model.unrelate(wanted)
    return model.create(wanted)


async def ask(database: Database, function: Any, wanted: Any) -> Any:
    async with database.reader() as reader:
        return await reader.run(partial(function, wanted))


async def check_query(database: Database, model: GraphModel, question: QueryEntities) -> None:
    """All pages together are what the model lists, and there are as many as are counted."""
    fitting = model.query(question)
    found = []
    cursor = None
    while True:
        page = await ask(database, reading.query_entities, question.model_copy(update={"cursor": cursor}))
        assert page.count == len(page.entities) <= question.limit
        found += page.entities
        cursor = page.next
        if cursor is None:
            break
    assert [entity.id for entity in found] == fitting, question
    for entity in found:
        thing = model.things[entity.id]
        assert (entity.type, entity.version) == (thing.type, thing.version)
        assert exactly(entity.properties) == exactly(thing.properties)
    counted = await ask(
        database,
        reading.count,
        Count(type=question.type, where=question.where, group_by=ByProperty(property="p")),
    )
    assert counted.total == len(fitting), question
    things = [model.things[ident].properties for ident in fitting]
    values = [rank(properties["p"]) for properties in things if "p" in properties]
    assert {rank(group.value): group.count for group in counted.groups} == {
        v: values.count(v) for v in values
    }
    assert counted.without == len(fitting) - len(values)
    by_type = await ask(
        database, reading.count, Count(type=question.type, where=question.where, group_by="type")
    )
    types = [model.things[ident].type for ident in fitting]
    assert {group.value: group.count for group in by_type.groups} == {
        kind: types.count(kind) for kind in types
    }


async def check_traversal(database: Database, model: GraphModel, walk: Traverse) -> None:
    """Everything is reached at its depth, by a path that is there."""
    if walk.start not in model.things:
        with pytest.raises(OperationalError, match="no entity"):
            await ask(database, traversing.traverse, walk)
        return
    reached = await ask(database, traversing.traverse, walk)
    depths = model.reach(walk)
    assert {one.id: one.depth for one in reached.entities} == depths
    assert [one.depth for one in reached.entities] == sorted(depths.values())
    assert (reached.count, reached.truncated) == (len(depths), False)
    for one in reached.entities:
        assert exactly(one.properties) == exactly(model.things[one.id].properties)
        assert len(one.path) == one.depth
        at = walk.start
        for step in one.path:
            assert (step.from_, step.type, step.to) in model.edges
            at = step.to if step.from_ == at and walk.direction != "incoming" else step.from_
        assert at == one.id
    if len(depths) > 1:
        fewer = await ask(database, traversing.traverse, walk.model_copy(update={"limit": len(depths) - 1}))
        assert fewer.truncated
        assert fewer.entities == reached.entities[:-1]


async def check_relationships(
    database: Database, model: GraphModel, queries: Sequence[QueryEntities]
) -> None:
    """By type, ends and properties: what the model has, in the order of creation."""
    for question in queries:
        for from_, to in ((None, None), ("a", None), (None, "a"), ("a", "b")):
            wanted = QueryRelationships(type=question.type, where=question.where, from_=from_, to=to)
            if not {end for end in (from_, to) if end} <= model.things.keys():
                continue
            found = await ask(database, reading.query_relationships, wanted)
            assert [(one.from_, one.type, one.to) for one in found.relationships] == [
                edge
                for edge, properties in model.edges.items()
                if from_ in {None, edge[0]} and to in {None, edge[2]} and question.type in {None, edge[1]}
                if fits(properties, question.where)
            ], wanted
            assert [exactly(one.properties) for one in found.relationships] == [
                exactly(model.edges[one.from_, one.type, one.to]) for one in found.relationships
            ]


@pytest.mark.parametrize("probed", [0, selecting.PROBED])
def test_each_comparison_of_each_value_with_each_is_as_the_model_has_it(
    probed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selecting, "PROBED", probed)

    async def check() -> None:
        async with asyncio.timeout(60), opened(tmp_path, Heard(), plugins=["ksi_graph"]) as database:
            model = GraphModel()
            for number, value in enumerate((*EACH, ...)):
                properties = {} if value is ... else {"p": value}
                request = CreateEntity(id=f"e{number}", type="x", properties=properties)
                assert await outcome(begin(database, request)) == expected(model, request)
            for condition in conditions():
                question = QueryEntities(where={"p": condition}, limit=100)
                found = await ask(database, reading.query_entities, question)
                assert [entity.id for entity in found.entities] == model.query(question), condition

    asyncio.run(check())


def conditions() -> Iterator[Value | Condition]:
    yield from EACH
    for value in EACH:
        yield from (Condition(eq=value), Condition(ne=value), Condition(in_=[value, "no such"]))
        if value is not None and not isinstance(value, bool):
            yield from (Condition(lt=value), Condition(lte=value), Condition(gt=value), Condition(gte=value))
            yield Condition(gt=value, lt=value)
        if isinstance(value, str):
            yield Condition(contains=value)
    yield from (Condition(exists=True), Condition(exists=False), Condition(in_=[]), Condition(in_=list(EACH)))


def test_tables_that_miss_one_event_are_found_out(tmp_path: Path) -> None:
    """The twin: what is compared differs when the log lacks a change."""

    async def check() -> None:
        heard = Heard()
        async with asyncio.timeout(60), opened(tmp_path, heard, plugins=["ksi_graph"]) as database:
            await begin(database, CreateEntity(id="a", type="x", properties={"p": 1}))
            await begin(database, UpdateEntity(id="a", properties={"p": 1.0}))
            with looking(database.path) as connection:
                live = contents(connection)
            assert replayed(heard.events) == live
            assert replayed(heard.events[:-1]) != live

    asyncio.run(check())
