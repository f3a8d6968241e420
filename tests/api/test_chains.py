"""Is a saved chain's name taken wherever a chain's name is, by everybody, until it is deleted?"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from farm.client import Farm
from farm.dataset.desk import Datasets
from farm.dataset.sources import source_of
from farm.errors import Conflict, Forbidden, InvalidJob, NotFound
from farm.protocol import AnyFarm
from farm.remote import AsyncFarm, RemoteFarm
from farm.remote.datasets import _chain_fields
from tests.api.conftest import PNG, Json, Site, locs, made, picture, problem
from tests.api.rows import planned
from tests.test_cli import Run
from tests.test_cli import run as run  # a fixture

CHAINS = "/api/v1/chains"
REFINE: Json = {
    "prompt": "a pear", "negative_prompt": "a plum", "keep": "preview",
    "stages": [{"kind": "text2img", "steps": 3}, {"kind": "img2img", "strength": 0.5}],
}  # fmt: skip


@pytest.fixture(params=["here", "elsewhere"])
def farm(request: pytest.FixtureRequest, site: Site) -> Iterator[Any]:
    """A farm, reached by its own servers and by its API."""
    if request.param == "here":
        yield site.farm
    else:
        with RemoteFarm(site.url, site.token("root", "read", "submit", "admin")) as found:
            yield found
    site.empty()
    for one in site.farm.presets():
        if one["saved"]:
            site.farm.delete_chain(one["name"])


def spec(job: Any) -> Json:
    """The chain of a job, as it was submitted."""
    found: Json = json.loads(job.record.spec)["chain"]
    return found


def test_the_name_is_taken_wherever_a_chains_is(farm: AnyFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a saved chain, and a folder that is called so
    told = farm.save_chain("portrait", REFINE, "soft")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "portrait").mkdir()
    assert (told["name"], told["description"]) == ("portrait", "soft")
    assert told["fields"] == {name: REFINE[name] for name in ("prompt", "negative_prompt", "keep")}
    assert told == farm.preset("portrait")
    assert told in farm.presets()
    assert {one["saved"] for one in farm.presets(saved=False)} == {None}
    # When it is asked for, Then it is that chain, with what is given over it
    job = farm.render(chain="portrait", seed=5)
    chain = spec(job)
    assert [chain[name] for name in ("prompt", "negative_prompt", "keep")] == ["a pear", "a plum", "preview"]
    assert chain["stages"][0]["num_inference_steps"] == 3
    other = spec(farm.render("a fig", chain="portrait", keep="none", **{"1.strength": 0.75}))
    assert (other["prompt"], other["negative_prompt"], other["keep"]) == ("a fig", "a plum", "none")
    assert other["stages"][1]["strength"] == 0.75
    swept = farm.run(chain="portrait", sweep=[{"1.strength": [0.5, 1.0]}], count=2)
    assert [spec(one)["stages"][1]["strength"] for one in swept] == [0.5, 0.5, 1.0, 1.0]
    assert farm.dry_run(chain="portrait", count=3).count == 3
    edges, _ = farm.edges("portrait")
    assert [one["kind"] for one in edges] == ["text2img", "img2img"]
    # And a job of it goes on otherwise
    assert spec(farm.fork(job.id, 1, strength=1.0))["stages"][1]["strength"] == 1.0
    # And a copy of it, or of the catalog's, is saved by its name
    assert farm.save_chain("copy", "portrait")["fields"] == told["fields"]
    assert farm.save_chain("big", "hires")["stages"] == farm.preset("hires")["stages"]


def test_what_was_asked_for_stays_as_it_was(site: Site, farm: AnyFarm, tmp_path: Path) -> None:
    # Given a job and a dataset of a saved chain
    farm.save_chain("portrait", REFINE)
    job = farm.render(chain="portrait", seed=5)
    (tmp_path / "rows.txt").write_text("a fig\na lime\n")
    name = f"d{secrets.token_hex(4)}"
    datasets = Datasets(site.farm)
    datasets.plan(source_of(tmp_path / "rows.txt"), name, "portrait")
    before = spec(job), datasets.planned(name).plan
    assert before[1].spec.chain["negative_prompt"] == "a plum"
    # When the chain is another one, and then gone
    farm.save_chain("portrait", {"stages": [{"kind": "text2img"}]}, replace=True)
    assert len(farm.edges("portrait")[0]) == 1
    farm.delete_chain("portrait")
    # Then they are as they were
    assert (spec(farm.job(job.id)), datasets.planned(name).plan) == before
    with pytest.raises(NotFound):
        farm.preset("portrait")


def test_a_repeat_makes_nothing_once_its_chain_is_another_one(site: Site) -> None:
    # Given a job of a saved chain, under a key
    ask, key = {"chain": "mine", "seed": 5}, {"Idempotency-Key": "once"}
    with site.client() as ada:
        assert ada.put(f"{CHAINS}/mine", json={"chain": REFINE}).status_code == 201
        made = ada.post("/api/v1/jobs", json=ask, headers=key).json()["jobs"]
        assert ada.post("/api/v1/jobs", json=ask, headers=key).json()["jobs"] == made
        # When the chain is another one, and then gone
        assert ada.put(f"{CHAINS}/mine", json={"chain": {**REFINE, "prompt": "a fig"}, "replace": True}).is_success
        problem(ada.post("/api/v1/jobs", json=ask, headers=key), 409, "idempotency_conflict")
        assert ada.delete(f"{CHAINS}/mine").status_code == 204
        assert ada.post("/api/v1/jobs", json=ask, headers=key).status_code == 422
        # Then there is the one
        assert [one["id"] for one in ada.get("/api/v1/jobs").json()["jobs"]] == [one["id"] for one in made]
    site.empty()


def test_all_variants_are_of_one_chain(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever saves another one meanwhile; and the store is asked once, however many there are."""
    site.farm.save_chain("portrait", REFINE)
    client, read = site.farm.inbox.client, list[str]()
    get = client.get_object

    def replaced(**given: Any) -> Any:
        found = get(**given)
        read.append(given["Key"])
        # Only a write of somebody else's, who has another farm in hand
        with Farm(site.settings) as other:
            other.save_chain("portrait", {"stages": [{"kind": "text2img"}], "seed": len(read)}, replace=True)
        return found

    monkeypatch.setattr(client, "get_object", replaced)
    jobs = site.farm.run("a fig", chain="portrait", sweep=[{"0.steps": [2, 3, 4]}])
    assert {len(spec(job)["stages"]) for job in jobs} == {2}
    assert read == [f"{site.settings.prefix}chains/portrait.json"]
    monkeypatch.undo()
    site.farm.delete_chain("portrait")
    site.empty()


def test_it_outlives_redis(site: Site, farm: AnyFarm) -> None:
    farm.save_chain("portrait", REFINE)
    # When nothing is left in Redis of this farm
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    keys = [key for key in client.scan_iter(match=f"*{site.settings.namespace}*") if b"callers" not in key]
    assert keys
    client.delete(*keys)
    # Then the chain is there
    assert spec(farm.render(chain="portrait"))["keep"] == "preview"


@pytest.mark.parametrize(
    ("chain", "loc", "code"),
    [
        ({"stages": []}, "stages", "bad_length"),
        ({"stages": [{"kind": "text2img", "stepz": 3}]}, "stages.0.stepz", "unknown_field"),
        ({"stages": [{"kind": "text2img", "checkpoint": "none"}]}, "stages.0.checkpoint", "unknown_checkpoint"),
        ({"stages": [{"kind": "text2img"}, {"kind": "text2img"}]}, "stages.1", "medium_mismatch"),
        ({**REFINE, "seed": -1}, "seed", "invalid_field"),
        ("portrai", "chain", "unknown_preset"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_no_submit_takes_is_not_saved(farm: AnyFarm, chain: Any, loc: str, code: str) -> None:
    with pytest.raises(InvalidJob) as wrong:
        farm.save_chain("portrait", chain)
    assert (loc, code) in [(one.loc, one.code) for one in wrong.value.errors]
    # And each wrong field is told
    with pytest.raises(InvalidJob) as wrong:
        farm.save_chain("portrait", {"stages": [{"kind": "text2img", "steps": 0}, {"kind": "none"}]})
    assert [one.loc for one in wrong.value.errors] == ["stages.0.num_inference_steps", "stages.1.kind"]
    for name, described, field in (("Bad name", "", "name"), ("x.json", "", "name"), ("ok", "a" * 2001, "description")):
        with pytest.raises(InvalidJob) as wrong:
            farm.save_chain(name, REFINE, described)
        assert [one.loc.rpartition(".")[2] for one in wrong.value.errors] == [field]
    assert not [one for one in farm.presets() if one["saved"]]
    farm.save_chain("portrait", REFINE, "a" * 2000)
    with pytest.raises(InvalidJob, match=r"did you mean portrait\?"):
        farm.render(chain="portrai")
    with pytest.raises(Conflict, match="catalog"):
        farm.save_chain("hires", REFINE, replace=True)


def test_its_images_are_everybodys(site: Site, farm: AnyFarm, tmp_path: Path) -> None:
    """What a chain's stages name is stored with it, and whoever uses the chain may name it."""
    # Given a chain file that names a mask beside it
    (tmp_path / "mask.png").write_bytes(picture("white"))
    stages = [{"kind": "text2img"}, {"kind": "inpaint", "mask": "mask.png"}]
    (tmp_path / "masked.yaml").write_text(json.dumps({"stages": stages}))
    farm.save_chain("masked", tmp_path / "masked.yaml")
    (tmp_path / "mask.png").unlink()
    mask = farm.preset("masked")["stages"][1]["mask"]
    # And another mask, which is a file, stands over it
    (tmp_path / "other.png").write_bytes(picture("silver"))
    other = farm.render("a pear", chain="masked", **{"1.mask": str(tmp_path / "other.png")})
    assert spec(other)["stages"][1]["mask"] != mask
    assert mask.startswith("sha256:")
    written = {"chain": {"stages": [stages[0], {**stages[1], "mask": mask}]}, "prompt": "a pear"}
    with site.client() as bob, site.client() as eve:
        # When bob asks for it by its name, Then it is drawn, also where he writes it out afterwards
        made(bob.post("/api/v1/jobs", json={"chain": "masked", "prompt": "a pear"}))
        made(bob.post("/api/v1/jobs", json=written))
        # And eve, who never looked at it, may name no image of it
        found = problem(eve.post("/api/v1/jobs", json=written), 422, "bad_image")
        assert locs(found) == {("stages.1.mask", "bad_image")}
        assert eve.get(f"{CHAINS}/masked").json()["stages"][1]["mask"] == mask
        made(eve.post("/api/v1/jobs", json=written))


def test_no_chain_gives_away_an_image_of_somebody_elses(site: Site) -> None:
    with site.client() as ada, site.client() as eve:
        # Given an image of ada's, of which eve knows the hash
        image = ada.post("/api/v1/uploads", content=picture("white", (72, 72)), headers=PNG).json()["image"]
        stages = [{"kind": "text2img"}, {"kind": "inpaint", "mask": image}]
        # When she saves a chain that names it, where an image stands and where none does
        found = problem(eve.put(f"{CHAINS}/stolen", json={"chain": {"stages": stages}}), 422, "bad_image")
        assert locs(found) == {("stages.1.mask", "bad_image")}
        said = {"chain": {"stages": stages[:1], "prompt": image}, "description": image}
        assert eve.put(f"{CHAINS}/stolen", json=said).status_code == 201
        eve.get(f"{CHAINS}/stolen")
        # Then it is not hers to name
        problem(eve.post("/api/v1/jobs", json={"chain": {"stages": stages}}), 422, "bad_image")
        assert eve.delete(f"{CHAINS}/stolen").status_code == 204


def test_who_saved_it_and_an_admin_change_it(site: Site) -> None:
    here = f"{CHAINS}/adas"
    with site.client("ada") as ada, site.client() as bob, site.client("root", "admin") as root:
        reader = site.client("ada", "read")
        ask = {"chain": REFINE, "description": "of ada's"}
        problem(reader.put(here, json=ask), 403, "forbidden")
        answer = ada.put(here, json=ask)
        assert (answer.status_code, answer.json()["owner"]) == (201, "ada")
        # Then the same once more is the same, and another one is told
        assert (ada.put(here, json=ask).status_code, ada.put(here, json=ask).json()) == (200, answer.json())
        other = {**ask, "description": "another"}
        problem(ada.put(here, json=other), 409, "conflict")
        problem(bob.put(here, json=other), 409, "conflict")
        # And bob sees and uses it, but changes nothing
        assert bob.get(here).json() == answer.json()
        assert answer.json() in bob.get(CHAINS).json()
        assert bob.post(f"{CHAINS}/check", json={"chain": "adas"}).status_code == 200
        problem(bob.put(here, json={**other, "replace": True}), 403, "forbidden")
        problem(bob.delete(here), 403, "forbidden")
        problem(reader.delete(here), 403, "forbidden")
        assert ada.get(here).json() == answer.json()
        # And root does
        assert root.put(here, json={**other, "replace": True}).json()["description"] == "another"
        assert ada.put(here, json={**ask, "replace": True}).status_code == 200
        assert (root.delete(here).status_code, root.delete(here).status_code) == (204, 404)
        problem(root.delete(f"{CHAINS}/hires"), 409, "conflict")
        problem(root.get(here), 404, "not_found")
        assert [one["name"] for one in root.get(CHAINS, params={"saved": "false"}).json()][:2] == ["txt", "img"]


def test_a_dataset_is_planned_with_it(site: Site) -> None:
    with site.client() as ada:
        ada.put(f"{CHAINS}/portrait", json={"chain": REFINE})
        found = planned(site, ada, f"d{secrets.token_hex(4)}", chain="portrait", parameters={"1.strength": 0.75})
        assert found["samples"] == 3
        (first, *_) = found["plan"]["first"]
        assert first["negative_prompt"] == "a plum"
        # And from afar, where what is the chain's own goes over it, and one that nobody knows is told
        with RemoteFarm(site.url, site.token("bob")) as farm:
            sent = farm.play(_chain_fields("portrait", {"fit": "contain", "1.strength": 0.75}))
            assert (sent["chain"]["negative_prompt"], sent["chain"]["fit"]) == ("a plum", "contain")
            assert farm.play(_chain_fields("portrai", {"fit": "contain"}))["chain"] == "portrai"
        ada.delete(f"{CHAINS}/portrait")


def test_those_who_await_have_it_too(site: Site) -> None:
    async def main() -> None:
        async with AsyncFarm(site.url, site.token("ada")) as ada, AsyncFarm(site.url, site.token("bob")) as bob:
            saved = await ada.save_chain("awaited", REFINE, "soft")
            assert (saved, saved["owner"]) == (await bob.preset("awaited"), "ada")
            assert saved in await bob.presets()
            assert saved not in await bob.presets(saved=False)
            assert (await bob.dry_run(chain="awaited")).count == 1
            with pytest.raises(Forbidden):
                await bob.delete_chain("awaited")
            await ada.delete_chain("awaited")
            with pytest.raises(NotFound):
                await ada.delete_chain("awaited")

    asyncio.run(main())


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_the_command_line_saves_shows_and_removes(
    site: Site,
    run: Run,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {"FARM_URL": site.url, "FARM_TOKEN": site.token("ada")}
    if place == "here":
        names = ("s3_endpoint", "s3_access_key", "s3_secret_key", "redis_url")
        given = {name: getattr(site.settings, name) for name in names}
        secret = {
            name: getattr(value, "get_secret_value", lambda value=value: value)() for name, value in given.items()
        }
        told = {f"FARM_{name.upper()}": value for name, value in secret.items()}
        told |= {"FARM_BUCKET": site.settings.bucket, "FARM_DATA": str(site.settings.data)}
        told["FARM_NAMESPACE"] = site.settings.namespace
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "soft.yaml"
    file.write_text(json.dumps({**REFINE, "seed": 5}))
    # When a file is saved, Then it is listed, shown and rendered
    found = run("chain", "save", "soft", "--chain", file, "--description", "soft\nand slow " * 20, "--json")
    assert found.status == 0, found.err
    assert found.envelope["data"]["fields"]["negative_prompt"] == "a plum"
    listed = {one["name"]: one for one in run("chain", "ls", "--json").envelope["data"]}
    assert (listed["soft"]["stages"], listed["hires"]["saved"]) == (["text2img", "img2img"], None)
    (line,) = [line for line in run("chain", "ls").out.splitlines() if line.startswith("soft ")]
    assert re.search("text2img → img2img +soft and slow ", line)
    assert line.endswith("ada" if place == "elsewhere" else "[...]")
    shown = run("chain", "show", "soft", "--json").envelope["data"]
    assert shown["chain"]["stages"][0]["num_inference_steps"] == 3
    assert [one["kind"] for one in shown["stages"]] == ["text2img", "img2img"]
    assert "negative_prompt='a plum'" in run("chain", "show", "soft").out
    assert run("render", "--chain", "soft", "--dry-run").status == 0
    # And what is shown can be shared as a file
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(shown["chain"]))
    assert run("chain", "validate", copy).status == 0
    # And it is a workflow with its own prompts and seed, as its file is
    drawn, same = run("chain", "comfy", "soft"), run("chain", "comfy", file)
    assert (drawn.status, drawn.out, drawn.said) == (0, same.out, same.said)
    assert all(f'"{word}"' in drawn.out for word in ("a pear", "a plum"))
    assert '"seed": 5' in drawn.out
    assert "the chain gives no seed" not in drawn.err
    assert "of the stages before the last nothing is kept" in drawn.err
    # And a name is taken only once, unless that is said
    again = run("chain", "save", "soft", "--chain", "txt", "--json")
    assert (again.status, again.code) == (1, "conflict")
    assert run("chain", "save", "soft", "--chain", "txt", "--replace").out == "soft is saved: text2img\n"
    assert run("chain", "save", "no name", "--chain", "txt", "--json").code == "invalid_field"
    assert run("chain", "rm", "soft", "--json").envelope["data"] == {"name": "soft"}
    assert run("chain", "rm", "soft", "--json").code == "not_found"
    assert run("render", "a pear", "--chain", "soft", "--dry-run", "--json").code == "unknown_preset"


def test_a_store_that_is_away_is_told(site: Site) -> None:
    away = site.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    from tests.api.conftest import serving

    with serving(away) as url, httpx2.Client(base_url=url, headers=dict(site.client().headers)) as ada:
        problem(ada.get(CHAINS), 503, "unavailable")
        assert ada.get(CHAINS, params={"saved": "false"}).status_code == 200
        assert ada.get(f"{CHAINS}/hires").status_code == 200
        problem(ada.get(f"{CHAINS}/soft"), 503, "unavailable")
        problem(ada.put(f"{CHAINS}/soft", json={"chain": "txt"}), 503, "unavailable")
        assert ada.post("/api/v1/jobs/dry-run", json={"chain": "txt", "prompt": "a pear"}).status_code == 200
