"""Which work is there, who holds it, and what has been committed?

The truth of the farm, in Redis. Every call is one Lua script on Redis's own clock, so it happens whole or not at all.
A **job** is one request, a chain of n stages. An **execution** is the running of one recipe; it alone is claimed, and
charges are counted there. A job is a *waiter* of the execution of its current stage; equal recipes share one.

Execution (`x:<exec>`)::

    state        call                to           charge       event to each waiter   keys written (with x:<exec>)
    -----------  ------------------  -----------  -----------  ---------------------  ----------------------------------
    absent,idle  a job attaches      ready                                            waiters, ready
    failed       a job attaches      ready        oom cleared                         waiters, ready
    ready        claim               running      attempt      claimed                -ready, leases, held, tokens
    running      beat                running                                          leases; progress
    running      show, if watched    running                                          preview; progress
    running      commit              committed                 committed              -leases, -held, -waiters: on;
                                                                                      times:<queue>
    running      fail crash          ready        crash        attempt_failed         -leases, -held, ready; failed_on
                 the last of 3       quarantined  crash        .., quarantined        -leases, -held, -waiters
    running      fail oom            ready        oom          attempt_failed         -leases, -held, ready, failed_on
                 the last of 2       failed       oom          .., failed             -leases, -held, -waiters
    running      fail transient      backoff      transient    attempt_failed         -leases, -held, due
    running      fail deterministic  failed                    .., failed             -leases, -held, -waiters
    running      fail of several     ready                     attempt_failed         -leases, -held, ready; alone
    running      worker_died         as crash     crash        as crash               as crash; alone if it held several
    running      release, re-claim   ready                     released               -leases, -held, ready
    running      lapse (reap, or a   ready        lapses       lapsed                 -leases, -held, ready
                 new boot claims)
                 the last of 10      quarantined  lapses       .., quarantined        -leases, -held, -waiters
    running      rewind              idle                      rewound                -leases, -held, -waiters
    committed    rewind of a taker   ready        rewinds      rewound                epoch+1, -output, waiters, ready
                 beyond 2            failed                    .., failed             epoch+1, -output
    backoff      reap, when due      ready                                            -due, ready
    ready        last waiter leaves  idle                                             -ready
    backoff      last waiter leaves  idle                                             -due
    running      any end but commit, idle         as above                            -leases, -held
                 nobody waits
    failed,      retry               ready        cleared      retried                epoch+1, waiters, ready;
    quarantined                                                                       -quarantine, -causes
    quarantined  drop                idle         cleared                             epoch+1; -quarantine, -causes

Every quarantined execution is listed in `quarantine`, with the jobs that it ended in `x:<exec>:ended`. Each failed
attempt leaves its cause in `x:<exec>:causes`. Crashes and out-of-memory errors also blame the worker
(`failing:<worker>`): three different executions in a row, without a commit between them, isolate it for a while that
doubles (`health:<worker>`); `claim` gives it nothing meanwhile. Ready sets are named by the schema version of their
records (`ready:v1:…`), and a
worker claims only versions it knows. A running execution in phase `spool` is finished and waits for its upload:
`worker_died` leaves it to its lease, and whoever has its token may beat and commit it.

A job that attaches to a committed execution takes its output and goes on; to a quarantined one, it ends so.
An idle execution that was never charged and never committed is deleted; others without waiters live for the retention,
or until `forget` names a job of theirs: it deletes those that are committed, idle or failed and that nobody waits on.

Job (`job:<id>`; each turn also writes the lists of jobs in a state, `jobs:<state>`, `owner:<owner>:<state>`,
`in:<state>:<run>` and, of a dataset's open ones, `collected:<owner>:<state>`, each end `run_ends`, and each event both
streams)::

    state            call                     to            event                   keys written (with job:<id>)
    ---------------  -----------------------  ------------  ----------------------  -----------------------------------
    absent           submit                   queued        submitted, reused ..    idem, jobs, owner, run, runs, runs:
                                                                                    <owner>, deadlines, those of its
                                                                                    tags; attaches
    queued           claim (of its stage)     running       claimed                 started_ms
    queued, running  commit, not the last     unchanged     committed, reused ..    out<at>, at; attaches
    queued, running  last commit, published   done          committed, done         out<at>, ended
    queued, running  last commit by another   unchanged     reused                  publishing; attaches to p:<job>
    queued, running  commit of p:<job>        done          committed, done         ended
    queued, running  last commit, collected   done          committed or reused,    out<at>, at; ended
                                                            done
    queued, running  its execution ends bad   failed,       attempt_failed, failed  code, message, ended
                                              quarantined   or quarantined
    queued, running  rewind of its stage      unchanged     rewound                 at, -out<at>; attaches
    any unended      cancel; expire, reap     cancelled;    cancelled; expired      detaches; ended
                                              expired
    queued, running  pause                    paused        paused                  detaches
    paused           resume                   queued        resumed                 attaches
    ended, not done  retry                    queued        retried                 deadlines, -ended; attaches
    any unended      reprioritise             unchanged     reprioritised           ready
    any              tag                      unchanged     tagged                  tags, tags:<owner>, and of each tag
                                                                                    tag:<tag>, ..:owner:<owner>,
                                                                                    ..:run:<run>
    ended            tag: the first, the last unchanged     tagged                  as above; kept, -ended and back
    ended            delete, forget           absent        deleted (farm's alone)  -all of these, -events:<job>, -idem
    ended            reap, past retention     absent                                -all of these, -events:<job>, -idem
    ended, tagged    reap, past retention     unchanged                             kept, -ended: of earlier builds'
                                                                                    workers, which know no tags

Nothing of a job runs out by itself: its record says in which lists it stands, so whoever forgets it clears them.
The lists of a tag hold its jobs in any state, and `tags` how many there are. Who lists a tag's jobs in one state looks
through all of them, so that no end has anything to move there, whatever build its worker is of. A tagged job's end is
in `kept` and not in `ended`, of which each build's reaper forgets what is past its retention.
`submit` refuses new jobs beyond what the farm takes or their owner may have, of which a dataset's are none; room for
jobs of the same run that follow in further scripts is kept in `booked:<owner>`. A run's jobs are steered as each alone
would be (`farm.runs`).

How long executions take is kept per queue at their commits, as exponentially weighted means (`WEIGHT`) of the time from
claim to commit: `wall_ms` of the whole, `mean_ms` of its share, the whole divided by the number of executions that the
claim call gave. That is right where they run as one batch; where a worker runs them one after the other, the last one's
is right, and the others' are too small. Publishing, and outputs that waited on a disk for the store, are not counted.

A call that its state does not list is refused (`conflict`), and a claim's call with another token is stale.

Where more than `FAN` jobs wait on one execution, the script that moves the first notes what follows for the others
(`moving`); `reap` does it, or the next call that names the job.

Whoever looks at a running stage sets `watched:<exec>` for a while (`watch`). Beats tell its holder, who only then makes
pictures (`preview:<exec>`).

The scripts are in `lua/`, each with all of `lua/shared/` before it. `farm.scripts` says what else has the same prefix.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterable, Sequence

from farm.errors import CODES, Failure, FieldError, InvalidJob, Unavailable
from farm.readers import Readers
from farm.records import KNOWN_SCHEMAS, LANES, Beat, Claim, Commit, Lane, QueueState, Submission, Submitted
from farm.rows import read_claim
from farm.runs import Runs
from farm.scripts import FAN, Server
from farm.settings import Settings
from farm.tags import Tags

CHUNK = 200
"""Jobs per submit script: some 20 ms of the server's time."""

LOG_CHARS = 8000
"""Of a failed attempt's log so much is kept, from its end: some fifty lines."""

BOOKED_MS = 60_000
"""For so long room is kept for jobs that follow in further calls, milliseconds; each of these takes far less."""

WEIGHT = 0.1
"""What the newest of an execution's times weighs in the mean of its queue; the first ten weigh the same.
Source: exponential smoothing, Roberts 1959, doi:10.1080/00401706.1959.10489860; about the 1/8 that RFC 6298 §2 takes
for a round trip: half of the mean is of the last seven, so it follows a change of parameters, and no outlier moves it
by more than a tenth of itself."""


def _plain(text: str, most: int = 2000) -> str:
    """`text` as it can be stored and shown: valid Unicode, at most `most` characters."""
    return text.encode("utf-8", "replace").decode("utf-8")[:most]


def _check_place(priority: int, lane: str) -> None:
    if lane not in LANES:
        raise InvalidJob(errors=(FieldError("lane", "one of " + ", ".join(LANES)),))
    if not 0 <= priority <= 100:
        raise InvalidJob(errors=(FieldError("priority", "0 to 100"),))


class Ledger(Readers, Runs, Tags):
    """The farm's truth in Redis. Threads may share one. Every call may raise Unavailable."""

    def __init__(self, settings: Settings, fan: int = FAN) -> None:
        self._settings = settings
        self._server = Server(settings, fan)
        self._call = self._server.call

    def ping(self) -> None:
        """Returns where the ledger's server answers and is one that the farm runs on.

        Raises:
            Unavailable: it does not answer, or (`unsupported_server`) it is a Redis Cluster.
        """
        self._server.ping()

    def close(self) -> None:
        """Closes the connections."""
        self._server.close()

    # -------------------------------------------------------------------------------------------------- producers

    def submit(
        self, submissions: Sequence[Submission], max_open: int = 0, beyond: int = 0
    ) -> tuple[list[Submitted], set[str]]:
        """The jobs that hold now, in order, and the queues with new ready work. 200 at a time, each time all or none.

        `max_open`: so many unended jobs, but datasets', their owner, who is one, may have with them; 0: any number.
        `beyond`: so many more of the same run follow in other calls; all of them are admitted with the first, or none.
        What was submitted before counts as admitted.

        Raises:
            Conflict: (`idempotency_conflict`) a key was used before, for another body; nothing of these 200 is written.
            QuotaExceeded: the owner would have more than `max_open`; nothing is written.
            Unavailable: nothing is written (`farm_full`: the farm would have more than it takes), or
                (`outcome_unknown`) some or all may be: send all of them again.
        """
        done: list[Submitted] = []
        queues: set[str] = set()
        for start in range(0, len(submissions), CHUNK):
            chunk = submissions[start : start + CHUNK]
            follow = len(submissions) - start - len(chunk) + beyond
            args: list[str | int] = [self._settings.max_pending, max_open, follow, BOOKED_MS, len(chunk)]
            for one in chunk:
                _check_place(one.priority, one.lane)
                if not one.stages:
                    raise InvalidJob(errors=(FieldError("stages", "at least one stage"),))
                span_ms = round((one.deadline_s or self._settings.deadline_s) * 1000)
                args += [one.job, len(one.stages), one.spec, one.idem, one.body_hash, one.lane, one.priority, span_ms]
                args += [one.run, one.owner, one.schema, int(one.collected), "\n".join(one.tags)]
                for stage in one.stages:
                    args += [stage.exec, stage.queue, stage.payload, f"{stage.work:g}"]
            if not done:
                self.ping()  # a server that is down is found before anything is sent
            try:
                found, ready = self._call("submit", *args, lost="outcome_unknown")
            except Unavailable as error:
                if done:  # whatever became of these, those before them are written
                    raise Unavailable(code="outcome_unknown") from error
                raise
            done += [Submitted(job, state, bool(existed)) for job, state, existed in found]
            queues.update(ready)
        return done, queues

    def cancel(self, job: str) -> str:
        """The job's new state, `cancelled`, which holds at once; its running stage stops if nobody else waits for it.

        Raises:
            Conflict: the job has ended otherwise.
            NotFound: there is no such job.
        """
        return str(self._call("end", job, "cancelled", "")[0])

    def expire(self, job: str) -> None:
        """Ends the job as past its deadline.

        Raises:
            Conflict: the job has ended otherwise.
            NotFound: there is no such job.
        """
        self._call("end", job, "expired", "deadline")

    def pause(self, job: str) -> None:
        """Takes the job off its stage until `resume`; a stage that runs may still commit.

        Raises:
            Conflict: the job has ended.
            NotFound: there is no such job.
        """
        self._call("pause", job)

    def resume(self, job: str) -> set[str]:
        """Attaches a paused job again; the queues made ready.

        Raises:
            Conflict: the job has ended.
            NotFound: there is no such job.
        """
        return set(self._call("resume", job)[0])

    def retry(self, job: str, max_open: int = 0, *, lift: bool = True) -> set[str]:
        """Opens an ended, unfinished job again with cleared counters and a new deadline; the queues made ready.

        `max_open`: so many unended jobs its owner may have with it; 0 for any number. `lift`: if what it is to run is
        in quarantine, that is lifted.

        Raises:
            Conflict: the job has not ended, or is done.
            Forbidden: it is in quarantine, and that may not be lifted.
            NotFound: there is no such job.
            QuotaExceeded: the owner has as many already.
        """
        return set(self._call("retry", job, secrets.token_hex(8), self._settings.max_pending, max_open, int(lift))[0])

    def delete(self, job: str) -> None:
        """Forgets an ended job: its record, events and idempotency key. What it made stays with its recipes.

        Raises:
            Conflict: the job has not ended.
            NotFound: there is no such job.
        """
        self._call("delete", job)

    def forget(self, jobs: Sequence[str]) -> list[str]:
        """Forgets ended jobs with the executions that nobody else waits on; those of `jobs` that have not ended.

        For whoever has taken their outputs: an equal recipe runs again afterwards. What is in quarantine stays there.
        """
        left: list[str] = []
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            left += self._call("forget", len(chunk), *chunk)
        return left

    def reprioritise(self, job: str, priority: int, lane: Lane | None = None) -> None:
        """Gives the job another priority (0 to 100) and lane. A shared execution goes by the best of its waiters.

        Raises:
            Conflict: the job has ended.
            InvalidJob: there is no such priority or lane.
            NotFound: there is no such job.
        """
        _check_place(priority, lane or LANES[0])
        self._call("reprioritise", job, priority, lane or "")

    # -------------------------------------------------------------------------------------------------- workers

    def claim(
        self, queues: Iterable[str], worker: str, boot: str, limit: int = 1, spooled: Sequence[str] = ()
    ) -> tuple[list[Claim], set[str]]:
        """Up to `limit` executions of one queue, the best ready ones, and the queues worth another doorbell.

        What this worker still holds is given back first, for it claims when it runs nothing; but not what it holds
        under the tokens `spooled`, finished outputs that wait for their upload.
        """
        asked = list(dict.fromkeys(queues))
        randoms = [secrets.token_hex(8) for _ in range(limit)]
        lists: list[str | int] = [len(asked), *asked, len(KNOWN_SCHEMAS), *KNOWN_SCHEMAS, len(spooled), *spooled]
        found, left = self._call("claim", worker, boot, limit, *randoms, *lists)
        return [read_claim(row, self._settings.lease_s) for row in found], set(left)

    def beat(self, claims: Sequence[Claim], phase: str, step: int, steps: int) -> list[Beat]:
        """What each claim's holder should do; renews its lease and stores its progress.

        The phase `spool` says that the stage is finished and its output waits on the worker's disk for its upload: when
        the worker dies, its lease still runs, and whoever has the token may go on.
        """
        return [Beat(one) for one in self._call("beat", phase, step, steps, len(claims), *_tokens(claims))]

    def show(self, pictures: Sequence[tuple[Claim, str]]) -> None:
        """Keeps each as its stage's picture until the next one, for two leases at most.

        A picture is base64 of an image of at most 20 KiB. It is taken from a claim that holds, where it is `watch`ed,
        and not where all who wait do so in the lane `bulk`.
        """
        args = [part for claim, picture in pictures for part in (claim.exec, claim.token, picture)]
        self._call("show", len(pictures), *args)

    def commit(self, commits: Sequence[Commit]) -> tuple[list[bool], set[str]]:
        """For each whether its output is taken (also where this claim's was before), and the queues made ready."""
        args: list[str | int] = []
        for one in commits:
            args += [one.claim.exec, one.claim.token, one.output, len(one.published), *one.published]
        flags, ready = self._call("commit", WEIGHT, len(commits), *args)
        return [flag == 1 for flag in flags], set(ready)

    def fail(self, claims: Sequence[Claim], failure: Failure, code: str, message: str, log: str = "") -> set[str]:
        """The queues made ready after a failed call. One of several claims charges nobody: each reruns alone.

        `log` holds the worker's last lines; it is kept with the failed attempt.

        Raises:
            StaleToken: none of the claims holds any more.
        """
        backoff = (random.random(), self._settings.backoff_s * 1000, self._settings.backoff_max_s * 1000)  # noqa: S311
        said = (_plain(message), _plain(log[-LOG_CHARS:], LOG_CHARS))
        args = (failure.value, code, *said, *backoff, len(claims), *_tokens(claims))
        return set(self._call("fail", *args)[0])

    def release(self, claims: Sequence[Claim]) -> set[str]:
        """The queues made ready by giving the claims back, uncharged. Those that no longer hold are passed over."""
        return set(self._call("release", len(claims), *_tokens(claims))[0])

    def rewind(self, claim: Claim) -> set[str]:
        """The queues made ready by sending the claim's jobs back to the stage that made its input, which is lost.

        Raises:
            StaleToken: the claim holds no more.
        """
        return set(self._call("rewind", claim.exec, claim.token)[0])

    def worker_died(
        self, worker: str, boot: str, cause: str, message: str, charge: bool = True, log: str = ""
    ) -> set[str]:
        """The queues made ready by what a dead worker held: a crash is charged, or nothing. Its registration ends.

        `log` holds its last lines. Outputs that wait for their upload are left to their leases.
        """
        code = cause if cause in CODES else "crashed"
        said = message if cause in CODES else f"{cause}: {message}"
        told = (_plain(said), _plain(log[-LOG_CHARS:], LOG_CHARS))
        return set(self._call("died", worker, boot, code, *told, int(charge))[0])

    # -------------------------------------------------------------------------------------------------- the registry

    def register(self, worker: str, boot: str, queues: Iterable[str], state: str, info: dict[str, str]) -> None:
        """Enters the worker for two leases. `state` is idle, busy or draining; `info`: see `WorkerRecord`."""
        asked = list(dict.fromkeys(queues))
        host, pid = info.get("host", ""), info.get("pid", "")
        lists: list[str | int] = [len(asked), *asked, len(KNOWN_SCHEMAS), *KNOWN_SCHEMAS]
        self._call("register", worker, boot, state, host, pid, json.dumps(info), *lists)

    def unregister(self, worker: str, boot: str) -> None:
        """Takes the worker's entry away, unless another boot has entered since."""
        self._call("unregister", worker, boot)

    def drain(self, worker: str, on: bool = True) -> None:
        """Sets or lifts the operator's flag: a drained worker is given nothing, whatever its boot."""
        self._server.run("SADD" if on else "SREM", "draining", worker)

    # -------------------------------------------------------------------------------------------------- quarantine

    def drop(self, exec: str) -> None:
        """Lifts an execution's quarantine and forgets why it was there. Its jobs stay ended; a new one starts afresh.

        Raises:
            NotFound: it is not in quarantine.
        """
        self._call("drop", exec, secrets.token_hex(8))

    # -------------------------------------------------------------------------------------------------- the reconciler

    def reap(self, leader: str) -> list[QueueState] | None:
        """The queues after one round of what time makes due, or None while another reconciler leads.

        A round with very much to do ends after a tick, so that its queues are rung for; the next goes on.
        """
        until = time.monotonic() + self._settings.tick_s
        more = 1
        while more and time.monotonic() < until:
            found = self._call("reap", leader, round(3 * self._settings.tick_s * 1000))
            if found[0] == "follows":
                return None
            more = found[1]
        return self.queues()


def _tokens(claims: Sequence[Claim]) -> list[str]:
    return [part for claim in claims for part in (claim.exec, claim.token)]
