"""Is a saved chain kept whole, by the first who wrote it, and only changed by who may?"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from farm import chains
from farm.catalog import Catalog
from farm.chains import MAX_BYTES, NamedChain, NamedChains
from farm.errors import BadBlob, Conflict, FarmError, Forbidden, InvalidJob, NotFound, Unavailable
from farm.settings import Settings
from farm.store import Store

ADA: dict[str, Any] = {"owner": "ada", "admin": False}
BOB: dict[str, Any] = {"owner": "bob", "admin": False}
ROOT: dict[str, Any] = {"owner": "root", "admin": True}


def chain(**given: Any) -> dict[str, Any]:
    """A chain as in a file."""
    return {"stages": [{"kind": "text2img"}], **given}


@pytest.fixture
def named(store: Store) -> NamedChains:
    return NamedChains(Catalog.load(Settings()), store)


def names(named: NamedChains) -> list[str]:
    """The names of the saved ones."""
    return [one.name for one in named.ls() if one.saved_ms]


def test_a_saved_chain_is_found_told_and_deleted(named: NamedChains, store: Store) -> None:
    # Given
    said = "what\tit gives\n" + "é" * 1986
    assert len(said) == 2000
    saved, fresh = named.save("my.chain_1", chain(prompt="a pear"), said, **ADA)
    # Then it is what was saved, also to somebody who has not seen it, after the catalog's
    assert fresh
    assert (saved.owner, saved.description, saved.chain) == ("ada", said, chain(prompt="a pear"))
    other = NamedChains(Catalog.load(Settings()), store)
    assert other.find("my.chain_1") == saved
    assert other.ls()[-1] == saved
    assert other.ls(saved=False) == other.ls()[:-1]
    facts = other.show("my.chain_1").facts
    assert (facts["fields"], facts["stages"]) == ({"prompt": "a pear"}, [{"kind": "text2img"}])
    # And the same once more is the same, by the same owner
    assert named.save("my.chain_1", chain(prompt="a pear"), said, **ADA) == (saved, False)
    # When it is deleted, Then it is gone for all
    named.delete("my.chain_1", **ADA)
    assert names(named) == names(other) == []
    with pytest.raises(NotFound):
        named.delete("my.chain_1", **ADA)


@pytest.mark.parametrize(
    "name", ["", "a", "A-Pear", "a b", "-pear", "pear.", "../pear", "a/b", "é-pear", "a" * 65, "pear.json", "pear.yml",
             "pear.yaml", "pear\n", "pe\x00ar", "\ud800x"],
)  # fmt: skip
def test_what_is_no_name_is_refused_by_field(named: NamedChains, name: str) -> None:
    with pytest.raises(InvalidJob) as wrong:
        named.save(name, chain())
    assert [one.loc for one in wrong.value.errors] == ["name"]
    assert "2 to 64 of a-z" in wrong.value.message
    with pytest.raises(InvalidJob, match="no chain of this name"):
        named.find(name)
    with pytest.raises(NotFound):
        named.delete(name)


@pytest.mark.parametrize("said", ["a" * 2001, "a bell\x07", "half \ud800", 7])
def test_what_is_no_description_is_refused_by_field(named: NamedChains, said: Any) -> None:
    with pytest.raises(InvalidJob) as wrong:
        named.save("pear", chain(), said)
    assert [one.loc for one in wrong.value.errors] == ["description"]


def test_only_who_saved_it_or_an_admin_changes_it(named: NamedChains) -> None:
    # Given a chain of ada's
    named.save("pear", chain(), **ADA)
    # Then nobody takes its name by accident, ada neither, nor the catalog's
    for who in (ADA, BOB, ROOT):
        with pytest.raises(Conflict, match="another chain of this name"):
            named.save("pear", chain(prompt="x"), **who)
        with pytest.raises(Conflict, match="catalog"):
            named.save("hires", chain(), replace=True, **who)
        with pytest.raises(Conflict, match="catalog"):
            named.delete("hires", **who)
    # And bob does not replace or delete it
    with pytest.raises(Forbidden):
        named.save("pear", chain(prompt="x"), replace=True, **BOB)
    with pytest.raises(Forbidden):
        named.delete("pear", **BOB)
    assert named.find("pear").chain == chain()
    # But an admin does, and it stays ada's, who may still change it
    named.save("pear", chain(prompt="root's"), replace=True, **ROOT)
    assert (named.find("pear").owner, named.find("pear").chain) == ("ada", chain(prompt="root's"))
    named.save("pear", chain(prompt="ada's"), replace=True, **ADA)
    named.delete("pear", **ROOT)
    assert names(named) == []


def together(calls: list[Any]) -> list[Any]:
    """What calls that begin at the same time give, or raise."""
    gate = Barrier(len(calls))

    def call(one: Any) -> Any:
        gate.wait(30)
        try:
            return one()
        except FarmError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


@pytest.mark.parametrize("before", [False, True])
def test_of_many_who_write_at_the_same_time_one_wins(named: NamedChains, store: Store, before: bool) -> None:
    if before:
        named.save("pear", chain(), **ADA)
    # When eight writers have looked before any of them writes
    gate = Barrier(8)
    written = []
    for index in range(8):
        mine = NamedChains(Catalog.load(Settings()), store)
        read = mine._stored

        def late(name: str, read: Any = read, first: list[bool] = [True]) -> Any:  # noqa: B006 — one for each
            found = read(name)
            if first.pop() if first else False:
                gate.wait(30)
            return found

        mine._stored = lambda name, call=late, once=[True]: call(name, first=once)  # type: ignore[method-assign]
        written.append(lambda mine=mine, index=index: mine.save("pear", chain(seed=index), replace=before, **ADA))
    found = together(written)
    # Then one of them did, and the others are told so
    (index,) = [index for index, one in enumerate(found) if isinstance(one, tuple)]
    assert all(isinstance(one, Conflict) for at, one in enumerate(found) if at != index)
    assert named.find("pear").chain == chain(seed=index)
    # And of those who write the same all have
    same = together([lambda: named.save("plum", chain(), **ADA)] * 4)
    assert {one[0].chain == chain() for one in same} == {True}


def test_there_are_so_many_and_so_large_ones(named: NamedChains, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MAX_OWNED", 2)
    monkeypatch.setattr(chains, "MAX_SAVED", 4)
    for name in ("a1", "a2"):
        named.save(name, chain(), **ADA)
    with pytest.raises(Conflict, match="2 chains are yours"):
        named.save("a3", chain(), **ADA)
    named.save("a1", chain(prompt="x"), replace=True, **ADA)
    for name in ("b1", "r1"):
        named.save(name, chain(), **{"b": BOB, "r": ROOT}[name[0]])
    with pytest.raises(Conflict, match="at most 4"):
        named.save("r2", chain(), **ROOT)
    named.delete("r1", **ROOT)
    large = chain(note="é" * (MAX_BYTES // 2))
    with pytest.raises(InvalidJob, match=f"at most {MAX_BYTES}"):
        named.save("r2", large, **ROOT)
    named.save("r2", chain(note="é" * (MAX_BYTES // 2 - 200)), **ROOT)
    assert names(named) == ["a1", "a2", "b1", "r2"]


def test_what_is_near_is_told(named: NamedChains, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MAX_NEAR", 1)
    for name in ("portrait", "landscape"):
        named.save(name, chain())
    with pytest.raises(InvalidJob, match=r"did you mean portrait\?.* hires.*, landscape and 1 more") as wrong:
        named.find("portrai")
    assert [(one.loc, one.code) for one in wrong.value.errors] == [("chain", "unknown_preset")]
    # And a name of the catalog's is told without a store, an unknown one of that is not judged
    away = NamedChains(Catalog.load(Settings()), Store(Settings(s3_endpoint="http://127.0.0.1:9"), 0.5))
    assert away.find("hires").chain["stages"]
    assert len(away.ls(saved=False)) == 9
    with pytest.raises(Unavailable):
        away.find("portrai")
    with pytest.raises(Unavailable):
        away.ls()
    with pytest.raises(InvalidJob, match=r"did you mean hires\?"):
        away.find("Hires")


def test_where_no_store_is_named_nothing_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given nothing that says where a store is
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    nowhere = NamedChains(Catalog.load(Settings()), Store(Settings(), 0.5))
    # Then only the catalog's are told, at once, and nothing can be saved
    assert nowhere.ls() == nowhere.ls(saved=False)
    with pytest.raises(InvalidJob, match="no chain of this name"):
        nowhere.find("portrait")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Unavailable):
        nowhere.save("portrait", chain())
    # And whatever says where it is has it asked
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with pytest.raises(Unavailable):
        nowhere.find("portrait")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"[]", b"{}", b'{"name": "x", "chain": {}}', b'{"name": "x", "chain": {"stages": 1}}',
        b'{"name": "x", "chain": {"stages": [{}, 1]}}', b'{"v": 2, "name": "x", "chain": {"stages": []}}',
        b"0" * (MAX_BYTES + 2),
    ],
)  # fmt: skip
def test_what_somebody_else_wrote_breaks_no_list(named: NamedChains, store: Store, data: bytes) -> None:
    # Given an object that no farm wrote, and a chain that is read
    store.client.put_object(Bucket=store.bucket, Key=f"{store.prefix}chains/odd.json", Body=data)
    store.client.put_object(Bucket=store.bucket, Key=f"{store.prefix}chains/else.txt", Body=data)
    named.save("pear", chain(), **ADA)
    # Then the other is listed, and this one told as what it is
    assert names(named) == ["pear"]
    with pytest.raises(BadBlob, match="cannot be read"):
        named.find("odd")
    for change in (lambda: named.save("odd", chain(), replace=True, **ADA), lambda: named.delete("odd", **ADA)):
        with pytest.raises(Forbidden):
            change()
    # And an admin mends it
    with pytest.raises(Conflict):
        named.save("odd", chain(), **ROOT)
    named.save("odd", chain(), replace=True, **ROOT)
    assert names(named) == ["odd", "pear"]


def test_a_list_reads_only_what_is_new(named: NamedChains, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pear", "plum"):
        named.save(name, chain())
    read: list[str] = []
    get = store.client.get_object

    def counted(**given: Any) -> Any:
        read.append(given["Key"].rpartition("/")[2])
        return get(**given)

    monkeypatch.setattr(store.client, "get_object", counted)
    assert names(named) == names(named) == ["pear", "plum"]
    assert sorted(read) == ["pear.json", "plum.json"]
    # When somebody else writes one, Then that one is read
    other = NamedChain(name="plum", chain=chain(prompt="new"), saved_ms=1).model_dump_json()
    store.client.put_object(Bucket=store.bucket, Key=f"{store.prefix}chains/plum.json", Body=other.encode())
    read.clear()
    assert [one.chain for one in named.ls() if one.saved_ms] == [chain(), chain(prompt="new")]
    assert read == ["plum.json"]
    assert json.loads(other)["v"] == 1
