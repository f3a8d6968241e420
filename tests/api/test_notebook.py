"""What does a notebook show of a job, and can what somebody wrote into one do anything there?"""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from farm import Farm
from farm.handle import JobHandle
from farm.remote import AsyncFarm, AsyncJob, RemoteFarm, RemoteJob
from farm.settings import Settings
from farm.shown import MOST, Jobs, picture
from tests.api.conftest import Site
from tests.conftest import free_port
from tests.test_cli import Hand

QUEUE = "text2img.tiny"
TAGS = {"div", "b", "code", "br", "progress", "table", "thead", "tbody", "tr", "th", "td", "img", "i", "p"}
SEEDS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</td></table><svg/onload=alert(1)>",
    "&lt;script&gt;",
    "<!--",
    "{{7*7}} ${alert(1)}",
    "javascript:alert(1)",
]


class Shown(HTMLParser):
    """The tags, attributes and text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = list[str](), list[tuple[str, str | None]](), ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def pictures(self) -> list[Image.Image]:
        """The inline images, decoded."""
        found = [str(value).partition("base64,") for name, value in self.attributes if name == "src"]
        assert {head for head, _, _ in found} <= {"data:image/webp;"}
        return [Image.open(io.BytesIO(base64.b64decode(data))) for _, _, data in found]


def shown(job: Any) -> Shown:
    """What a notebook shows, harmless."""
    found = Shown(job._repr_html_())
    assert {*found.tags} <= TAGS
    assert {name for name, _ in found.attributes} <= {"max", "value", "width", "height", "alt", "src", "colspan"}
    return found


@pytest.fixture
def remote(site: Site) -> Iterator[RemoteFarm]:
    with RemoteFarm(site.url, site.token("root", "admin", "read", "submit")) as farm:
        yield farm
    site.empty()


def test_a_job_shows_its_state_its_stages_and_in_the_end_its_picture(
    site: Site, remote: RemoteFarm, hand: Hand
) -> None:
    # Given a job that waits
    far = remote.render("a pear", chain="txt", seed=secrets.randbits(40))
    here = JobHandle(site.farm, far.id)
    for job in (here, far):
        found = shown(job)
        assert all(word in found.text for word in ("queued", QUEUE, "a pear", far.id))
        assert not found.pictures
    # When it runs
    claim = hand.claim(QUEUE)
    hand.ledger.beat([claim], "step", 2, 4)
    assert all("2/4" in shown(job).text for job in (here, far))
    assert ("value", "0.500") in shown(far).attributes
    # When it is done, its picture is there, small
    hand.serve(claim)
    for job in (here, far):
        (image,) = shown(job).pictures
        assert (image.format, image.size) == ("WEBP", (64, 64))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_somebody_wrote_is_text(site: Site, remote: RemoteFarm, hand: Hand, seed: str) -> None:
    # Given a job with it as its prompt, which failed with it as its message
    job = remote.render(seed, chain="txt", seed=secrets.randbits(40))
    for _ in range(3):
        worker = secrets.token_hex(4)  # one that fails all it tries is given nothing for a while
        assert hand.ledger.claim([QUEUE], worker, "boot")[0]
        hand.ledger.worker_died(worker, "boot", seed, seed)
    assert job.state == "quarantined"
    # Then every view of it shows it as it was written, and nothing else
    for view in (job, JobHandle(site.farm, job.id), Jobs([job]), remote.jobs(limit=1), site.farm.jobs(limit=1)):
        assert seed in shown(view).text


def test_a_run_and_a_list_are_tables(site: Site, remote: RemoteFarm, hand: Hand) -> None:
    jobs = remote.run("a pear", chain="txt", seed=secrets.randbits(40), count=3)
    hand.serve(hand.claim(QUEUE))
    found = shown(jobs)
    assert found.tags.count("tr") == 4
    assert [image.size for image in found.pictures] == [(64, 64)]
    assert all(job.id in found.text for job in jobs)
    assert shown(site.farm.jobs(limit=3)).tags.count("tr") == 4
    many = Jobs(remote.jobs(limit=1) * (MOST + 3))
    assert "and 3 more" in shown(many).text
    assert shown(Jobs[Any]()).tags.count("tr") == 1


def test_a_farm_that_is_away_is_shown_so(site: Site, remote: RemoteFarm, hand: Hand) -> None:
    # Given jobs of farms that do not answer, or know them no more
    with RemoteFarm(f"http://127.0.0.1:{free_port()}", "secret-word") as nowhere:
        away = RemoteJob(nowhere, "01a201fd-6f6a-7c40-aca7-472aec6cf8a6")
        for view in (away, Jobs([away])):
            assert "unavailable: the farm's API cannot be reached" in shown(view).text
            assert "secret-word" not in view._repr_html_()
    lost = JobHandle(site.farm, "01a201fd-6f6a-7c40-aca7-472aec6cf8a6")
    assert "not_found" in shown(lost).text
    with Farm(Settings.load(redis_url=f"redis://127.0.0.1:{free_port()}/0")) as dead:
        assert "unavailable" in shown(JobHandle(dead, lost.id)).text
    # And a picture that is gone from the store
    job = remote.render("a pear", chain="txt", seed=secrets.randbits(40))
    hand.serve(hand.claim(QUEUE))
    (result,) = JobHandle(site.farm, job.id).results
    site.farm.store.client.delete_object(Bucket=site.settings.bucket, Key=result.key)
    site.farm.store.client.delete_object(Bucket=site.settings.bucket, Key=site.farm.store.blob_key(result.sha256))
    for view in (job, JobHandle(site.farm, job.id)):
        found = shown(view)
        assert "done" in found.text
        assert "bad_blob" in found.text
    assert "cannot be shown" in picture(b"no picture")


def test_an_awaited_job_shows_what_was_told_last(site: Site, remote: RemoteFarm, hand: Hand) -> None:
    import asyncio

    async def main() -> None:
        async with AsyncFarm(site.url, site.token("ada")) as farm:
            job = await farm.render("<b>pear", chain="txt", seed=secrets.randbits(40))
            assert isinstance(job, AsyncJob)
            assert job.id in shown(job).text
            await job.state()
            assert "queued" in shown(job).text
            assert "<b>pear" in shown(job).text
            await asyncio.to_thread(lambda: hand.serve(hand.claim(QUEUE)))
            await job.wait(30)
            await job.images()
            assert [image.size for image in shown(job).pictures] == [(64, 64)]

    asyncio.run(main())
