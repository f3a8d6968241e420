"""Which guards of the API does a test hold: who may see and do what, how often, and what is told in the end?"""

from __future__ import annotations

from tests.mutants import Mutant

AUTH, SESSION = "tests/api/test_auth.py::test_", "tests/api/test_session.py::test_"
JOBS, UPLOADS = "tests/api/test_jobs.py::test_", "tests/api/test_uploads.py::test_"
EVENTS, OUTAGES = "tests/api/test_events.py::test_", "tests/api/test_outages.py::test_"
FORK, LIMITS, WIRE = "tests/api/test_fork.py::test_", "tests/api/test_limits.py::test_", "tests/api/test_wire.py::test_"


MUTANTS = [
    Mutant(
        "api_everybody_owns_everything",
        "farm/api/callers.py",
        "return self.is_admin or record.owner == self.owner",
        "return True",
        (FORK + "somebody_elses_job_is_not_there",),
    ),
    Mutant(
        "api_owners_share_their_keys",
        "farm/api/callers.py",
        'return f"@{self.owner}/{idempotency_key}"',
        "return idempotency_key",
        (JOBS + "the_same_key_yields_the_same_jobs",),
    ),
    Mutant(
        "api_a_key_takes_another_body",
        "farm/api/kept.py",
        "if earlier != body_sha256:",
        "if False:",
        (JOBS + "the_same_key_yields_the_same_jobs",),
    ),
    Mutant(
        "api_a_drawn_key_is_kept",
        "farm/api/jobs.py",
        "desk.kept.reserved(caller.owner, given, ",
        "desk.kept.reserved(caller.owner, key, ",
        (JOBS + "only_a_key_that_was_given_is_kept_beside_its_jobs",),
    ),
    Mutant(
        "api_a_hash_gives_a_picture",
        "farm/whose.py",
        "if not owns(name.removeprefix(STORED)):",
        "if False:",
        (UPLOADS + "somebody_elses_upload_is_none",),
    ),
    Mutant(
        "api_scopes_are_words",
        "farm/api/door.py",
        "if scope is not None and scope not in found.scopes and not found.is_admin:",
        "if False:",
        (AUTH + "scopes_are_what_a_token_may",),
    ),
    Mutant(
        "api_an_old_token_holds",
        "farm/tokens.py",
        "if token is None or not same or not token.holds():",
        "if token is None or not same:",
        (AUTH + "a_wrong_secret_an_old_token_and_a_removed_one_are_told_alike",),
    ),
    Mutant(
        "api_any_secret_fits",
        "farm/tokens.py",
        "if token is None or not same or not token.holds():",
        "if token is None or not token.holds():",
        (AUTH + "a_wrong_secret_an_old_token_and_a_removed_one_are_told_alike",),
    ),
    Mutant(
        "api_any_host_is_this_machine",
        "farm/api/door.py",
        'if name not in ("127.0.0.1", "localhost", "[::1]"):',
        "if False:",
        (AUTH + "without_tokens_no_web_page_of_elsewhere_may_call",),
    ),
    Mutant(
        "api_a_cookie_is_enough",
        "farm/api/door.py",
        "if writes(connection) and not hmac.compare_digest(",
        "if False and not hmac.compare_digest(",
        (SESSION + "without_its_second_word_a_session_changes_nothing",),
    ),
    Mutant(
        "api_any_page_may_call",
        "farm/api/door.py",
        'if site not in (None, "same-origin", "none") or (site == "none" and writes(connection)):',
        "if False:",
        (SESSION + "no_page_of_elsewhere_uses_a_session",),
    ),
    Mutant(
        "api_nobody_is_too_fast",
        "farm/api/limits.py",
        "if rate := self._settings.rate_per_s:",
        "if (rate := self._settings.rate_per_s) and False:",
        (LIMITS + "a_token_writes_in_bursts",),
    ),
    Mutant(
        "api_guesses_are_free",
        "farm/api/limits.py",
        "if guesses := self._settings.login_failures:",
        "if (guesses := self._settings.login_failures) and False:",
        (LIMITS + "guesses_of_one_address_are_counted",),
    ),
    Mutant(
        "api_a_body_without_a_length_has_none",
        "farm/api/guard.py",
        "if brought > limit:",
        "if False:",
        ("tests/api/test_frame.py::test_bodies_of_another_type_or_size_are_refused",),
    ),
    Mutant(
        "api_a_body_ends_in_two_ways",
        "farm/api/guard.py",
        'if "content-length" in headers and "transfer-encoding" in headers:',
        "if False:",
        (WIRE + "no_call_is_hidden_in_the_body_of_another",),
    ),
    Mutant(
        "api_each_question_has_its_own_time",
        "farm/api/guard.py",
        "        answer_within(ANSWER_S)\n        try:",
        "        try:",
        (OUTAGES + "all_that_a_call_asks_has_one_deadline",),
    ),
    Mutant(
        "api_one_owner_takes_all_streams",
        "farm/api/hub.py",
        "[feed.owner] >= MAX_FEEDS_EACH:",
        "[feed.owner] >= MAX_FEEDS:",
        (EVENTS + "one_owner_has_so_many_streams_and_all_together",),
    ),
    Mutant(
        "api_the_line_stands_still",
        "farm/api/hub.py",
        "            tasks.start_soon(self._forever, self._look_at_the_line)\n",
        "",
        (EVENTS + "who_waits_sees_the_line_move",),
    ),
    Mutant(
        "api_a_gap_is_passed_over",
        "farm/api/hub.py",
        "newest = await self._made_up_for() | newest",
        "pass",
        (OUTAGES + "no_end_is_lost_where_the_stream_keeps_less",),
    ),
    Mutant(
        "api_streams_outlive_the_api",
        "farm/api/wire.py",
        'self.cycle.scope["state"].get(STOP, lambda: None)()',
        "pass",
        (EVENTS + "streams_end_with_the_api",),
    ),
]
