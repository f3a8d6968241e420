"""Which rules of the design does the code keep, and which test fails where one is gone?

By the design's numbers. Rule 6 (fused claims) is not built yet, nor are the learned batch limit of rule 4 and the
collector's tombstones of rule 5. Most of rules 4 and 5 is Lua: `tests.mutants.lua` has more of it.
"""

from __future__ import annotations

from tests.mutants import Mutant

BELL, BROKER = "tests/e2e/test_bell.py::test_", "tests/test_broker.py::test_"
LEASE, LEDGER = "tests/test_lease.py::test_", "tests/test_ledger.py::test_"
SERVERS, SUPERVISOR = "tests/test_servers.py::test_", "tests/test_supervisor.py::test_"
OUTAGES, QUARANTINE = "tests/test_outages.py::test_", "tests/test_quarantine.py::test_"
WORKER = "tests/test_worker.py::test_"
FAILURES, POISON = "tests/e2e/test_failures.py::test_", "tests/e2e/test_poison.py::test_"


DOORBELLS = [
    Mutant(
        "1_doorbells_want_an_answer",
        "farm/broker.py",
        "no_ack=True",
        "no_ack=False",
        (BROKER + "a_doorbell_that_is_heard_owes_no_answer",),
    ),
    Mutant(
        "1_anything_is_a_doorbell",
        "farm/bell.py",
        "        if is_ring(message):\n            super()._deliver(doorbell(queue), queue)",
        "        if True:\n            super()._deliver(message, queue)",
        (BELL + "the_same_worker_outlives_what_is_no_doorbell",),
    ),
    Mutant(
        "1_garbage_ends_the_worker",
        "farm/bell.py",
        "except (ValueError, RecursionError) as error:",
        "except ZeroDivisionError as error:",
        (BELL + "the_same_worker_outlives_what_is_no_doorbell[no JSON]",),
    ),
    Mutant(
        "1_celery_binds_its_queues",
        "farm/bell.py",
        "def _queue_bind(",
        "def _never_called(",
        (BELL + "celery_keeps_nothing_but_the_doorbells",),
    ),
    Mutant(
        "1_celery_gossips",
        "workers/worker.py",
        '            "--without-gossip",\n',
        "",
        (BELL + "celery_keeps_nothing_but_the_doorbells",),
    ),
    Mutant(
        "1_results_are_kept",
        "workers/worker.py",
        "app.task(name=RING, ignore_result=True)(self.answer)",
        "app.conf.result_backend = app.conf.broker_url; app.task(name=RING, ignore_result=False)(self.answer)",
        (BELL + "celery_keeps_nothing_but_the_doorbells",),
    ),
    Mutant(
        "1_a_deaf_worker_stays_deaf",
        "workers/worker.py",
        "if now - silent_since > self.settings.deaf_s * (PATIENT if hung_up else 1):",
        "if False:",
        (WORKER + "a_child_that_hears_no_doorbell_leaves",),
    ),
    Mutant(
        "1_a_lost_doorbell_stays_lost",
        "farm/reconcile.py",
        "if state.ready and state.live:",
        "if False:",
        (SUPERVISOR + "a_lost_doorbell_is_rung_again",),
    ),
    Mutant(
        "1_more_rings_than_ears",
        "farm/reconcile.py",
        "min(state.ready, state.live)",
        "state.ready",
        (SUPERVISOR + "no_more_is_rung_than_workers_can_hear",),
    ),
    Mutant(
        "1_rings_pile_up",
        "farm/broker.py",
        "range(wanted - self.outstanding(name))",
        "range(wanted)",
        (BROKER + "no_more_doorbells_wait_than_were_asked_for",),
    ),
    Mutant(
        "1_a_ring_holds_its_caller",
        "farm/broker.py",
        "        for name in queues:\n            self._asked.put((name, 1))",
        "        for name in queues:\n            try:\n                self.outstanding(name) or self._send(name)\n"
        "            except Exception:\n                pass",
        (BROKER + "a_ring_holds_nobody",),
    ),
    Mutant(
        "1_what_is_left_is_not_rung_for",
        "farm/lua/claim.lua",
        "if ready > 0 then left[#left + 1] = queue end",
        "",
        (LEDGER + "of_several_queues_the_best_work_is_taken",),
    ),
]

LEASES = [
    Mutant(
        "2_a_thread_alone_renews",
        "workers/lease.py",
        "if self._over or time.monotonic() - self._moved > self.limits.of(phase):",
        "if self._over:",
        (LEASE + "a_stage_that_hangs_loses_its_lease_though_the_pulse_goes_on",),
    ),
    Mutant(
        "2_progress_alone_renews",
        "workers/worker.py",
        "if lease is not None:\n                    lease.renew()",
        "if lease is not None:\n                    pass",
        (FAILURES + "a_silent_decode_keeps_its_lease",),
    ),
    Mutant(
        "2_one_limit_for_all_phases",
        "workers/lease.py",
        "self._mark(phase, self.limits.of(phase))",
        "self._mark(phase, self.limits.step_s)",
        (FAILURES + "a_silent_decode_keeps_its_lease",),
    ),
    Mutant(
        "2_a_hung_child_lives",
        "workers/supervisor.py",
        "elif now > slot.deadline:",
        "elif False:",
        (POISON + "a_hung_stage_is_killed_within_its_limit_though_threads_still_run",),
    ),
    Mutant(
        "2_cancel_is_not_read_at_a_step",
        "workers/lease.py",
        "        if self._reachable:\n            self.renew()\n",
        "",
        (LEASE + "cancel_is_read_at_the_next_step",),
    ),
    Mutant(
        "2_an_outage_costs_leases",
        "farm/lua/reap.lua",
        "gap > math.max(LEASE / 2, hold) or gap < 0",
        "gap < 0",
        (LEDGER + "an_outage_gives_leases_the_time_back_that_it_took",),
    ),
    Mutant(
        "2_a_lapse_costs_a_crash",
        "farm/lua/shared/executions.lua",
        "'lapses', 1) >= CAP.lapses",
        "'crash', 1) >= CAP.crash",
        (LEDGER + "a_lapsed_lease_is_ready_again_without_a_crash",),
    ),
]

TOKENS = [
    Mutant(
        "3_a_token_is_a_counter",
        "farm/lua/claim.lua",
        " .. ':' .. randoms[i]",
        " .. ':'",
        (LEDGER + "a_server_that_comes_back_with_older_counters_gives_no_token_twice",),
    ),
    Mutant(
        "3_the_counter_alone_is_compared",
        "farm/lua/shared/executions.lua",
        "return state == 'running' and holds == token",
        "return state == 'running' and string.match(holds, '^%d+') == string.match(token, '^%d+')",
        (LEDGER + "a_server_that_comes_back_with_older_counters_gives_no_token_twice",),
    ),
]

ATTEMPTS = [
    Mutant(
        "4_a_crash_is_free",
        "farm/lua/shared/executions.lua",
        "redis.call('HINCRBY', xk(exec), 'crash', 1) >= CAP.crash",
        "false",
        (LEDGER + "the_last_of_three_crashes_quarantines_with_all_waiters",),
    ),
    Mutant(
        "4_out_of_memory_is_free",
        "farm/lua/fail.lua",
        "redis.call('HINCRBY', key, 'oom', 1) >= CAP.oom",
        "false",
        (LEDGER + "the_second_out_of_memory_fails_the_job",),
    ),
    Mutant(
        "4_out_of_memory_spares_nothing",
        "workers/making.py",
        "frugal=any(work.claim.oom for work in works)",
        "frugal=False",
        (POISON + "out_of_memory_is_tried_once_more_sparing_memory",),
    ),
    Mutant(
        "4_a_network_error_is_a_crash",
        "workers/worker.py",
        'failure, code, message = Failure.TRANSIENT, "transient", error.message',
        'failure, code, message = Failure.CRASH, "transient", error.message',
        (FAILURES + "a_transient_failure_is_tried_again",),
    ),
    Mutant(
        "4_what_would_repeat_is_repeated",
        "farm/lua/fail.lua",
        "elseif failure == 'deterministic' then\n      end_execution(exec, 'failed', code, message)",
        "elseif failure == 'deterministic' then\n      give_back(exec)",
        (LEDGER + "a_deterministic_failure_fails_all_waiters_at_once",),
    ),
    Mutant(
        "4_a_drain_is_charged",
        "farm/lua/release.lua",
        "then release(exec) end",
        "then crash(exec, 'crashed', '', '') end",
        (LEDGER + "a_release_is_free_and_keeps_the_place_in_the_line",),
    ),
    Mutant(
        "4_a_failed_batch_is_charged",
        "farm/lua/fail.lua",
        "if given > 1 then",
        "if false then",
        (LEDGER + "a_failed_call_of_several_charges_nobody",),
    ),
    Mutant(
        "4_a_worker_fails_a_stage_again",
        "farm/lua/shared/executions.lua",
        "(failed_on or '\\n') .. worker .. '\\n'",
        "'\\n'",
        (LEDGER + "a_worker_that_failed_a_stage_leaves_it_to_another_that_lives",),
    ),
    Mutant(
        "4_a_dead_worker_is_waited_for",
        "farm/lua/shared/workers.lua",
        "'serves:' .. queue, NOW, NOW + REGISTERED)) do",
        "'serves:' .. queue, '-inf', NOW + REGISTERED)) do",
        (LEDGER + "a_worker_that_failed_a_stage_takes_it_again_where_no_other_can",),
    ),
]

EXECUTIONS = [
    Mutant(
        "5_equal_recipes_in_flight_run_twice",
        "farm/lua/shared/jobs.lua",
        "if state == 'ready' or state == 'running' or state == 'backoff' then",
        "if state == 'ready' or state == 'backoff' then",
        (LEDGER + "a_later_joiner_of_a_last_stage_gets_a_publish_execution",),
    ),
    Mutant(
        "5_attempts_belong_to_the_job",
        "farm/lua/shared/executions.lua",
        "if state == 'idle' and epoch == '1' and not (crash or oom or lapses) then",
        "if state == 'idle' and epoch == '1' then",
        (LEDGER + "charges_outlive_a_cancel",),
    ),
    Mutant(
        "5_cancel_takes_all_waiters",
        "farm/lua/shared/jobs.lua",
        "  if redis.call('SREM', wk(exec), job) == 0 then return end",
        "  if redis.call('DEL', wk(exec)) == 0 then return end",
        (LEDGER + "cancel_detaches_one_waiter_and_stops_the_stage_with_the_last",),
    ),
    Mutant(
        "5_quarantine_ends_one_waiter",
        "farm/lua/shared/base.lua",
        "if i <= FAN then finish(job, state, code, message, subject) else",
        "if i <= 1 then finish(job, state, code, message, subject) elseif i > FAN then",
        (LEDGER + "the_last_of_three_crashes_quarantines_with_all_waiters",),
    ),
    Mutant(
        "5_a_lost_output_is_made_for_ever",
        "farm/lua/rewind.lua",
        "if (tonumber(rewinds or 0)) >= CAP.rewinds then",
        "if false then",
        (LEDGER + "beyond_the_cap_a_lost_input_fails_the_jobs_until_they_are_retried",),
    ),
    Mutant(
        "5_a_lost_output_has_no_new_epoch",
        "farm/lua/rewind.lua",
        "    redis.call('HINCRBY', xk(producer), 'epoch', 1)\n",
        "",
        (LEDGER + "a_lost_input_is_made_again",),
    ),
    Mutant(
        "5_a_lost_output_is_a_failure",
        "workers/worker.py",
        "                    self.ledger.rewind(claims[0])\n                    if len(claims) == 1",
        "                    self.ledger.rewind(claims[0])\n                    if False",
        (FAILURES + "a_lost_input_is_made_again[gone]",),
    ),
]

EVENTS = [
    Mutant(
        "7_an_end_is_not_told",
        "farm/lua/shared/base.lua",
        "  event(job, state, subject, code)\n",
        "",
        (LEDGER + "the_last_commit_ends_the_job_as_done",),
    ),
    Mutant(
        "7_events_are_not_capped",
        "farm/lua/shared/base.lua",
        "redis.call('XADD', to[1], 'MAXLEN', '~', to[2], '*',",
        "redis.call('XADD', to[1], '*',",
        (LEDGER + "a_jobs_stream_is_capped",),
    ),
    Mutant(
        "7_pause_stops_a_running_stage",
        "farm/lua/beat.lua",
        " + redis.call('SCARD', pk(exec))",
        "",
        (LEDGER + "pause_lets_a_running_stage_commit",),
    ),
    Mutant(
        "7_one_cancel_stops_a_batch",
        "workers/lease.py",
        "if not {Beat.OK, Beat.WATCHED}.intersection(answers):",
        "if Beat.CANCELLED in answers:",
        (LEASE + "a_call_goes_on_while_one_of_its_jobs_lives",),
    ),
]

RECORDS = [
    Mutant(
        "8_lua_decodes_the_spec",
        "farm/lua/submit.lua",
        "'spec', one.spec, 'run'",
        "'spec', cjson.encode(cjson.decode(one.spec)), 'run'",
        (LEDGER + "opaque_strings_come_back_exactly",),
    ),
    Mutant(
        "8_schemas_share_a_line",
        "farm/lua/shared/base.lua",
        "'ready:v' .. schema .. ':'",
        "'ready:v1:'",
        (QUARANTINE + "newer_records_are_left_to_newer_workers",),
    ),
    Mutant(
        "8_keys_without_a_hash_tag",
        "farm/scripts.py",
        '"{" + settings.namespace + "}:"',
        'settings.namespace + ":"',
        (LEDGER + "a_beat_renews_the_lease_and_stores_progress",),
    ),
    Mutant(
        "8_a_cluster_is_taken",
        "farm/scripts.py",
        'return bool(found.get("cluster_enabled"))',
        "return False",
        (LEDGER + "a_cluster_is_refused",),
    ),
]

PROCESSES = [
    Mutant(
        "9_children_outlive_their_supervisor",
        "farm/parent.py",
        "ctypes.CDLL(None, use_errno=True).prctl(1, how)",
        "pass",
        (SUPERVISOR + "a_child_ends_with_its_killed_supervisor",),
    ),
    Mutant(
        "9_ctrl_c_ends_the_servers",
        "farm/servers.py",
        "start_new_session=True",
        "start_new_session=False",
        (SERVERS + "ctrl_c_in_the_terminal_does_not_reach_the_servers",),
    ),
    Mutant(
        "9_servers_outlive_a_killed_farm",
        "farm/servers.py",
        "libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)",
        "pass",
        (SERVERS + "servers_end_with_a_killed_farm_and_the_next_one_may_start",),
    ),
    Mutant(
        "9_sigterm_claims_on",
        "workers/worker.py",
        "if self.drain.asked or self.spool.state:",
        "if self.spool.state:",
        (WORKER + "after_sigterm_nothing_is_claimed",),
    ),
    Mutant(
        "9_a_drain_has_no_grace",
        "workers/lease.py",
        "(0 if began else self._stage_s)",
        "0",
        (LEASE + "a_drain_lets_the_stage_go_on_for_its_grace_and_no_longer",),
    ),
    Mutant(
        "9_a_drain_has_no_end",
        "workers/lease.py",
        "        if self._drain.over:\n            raise Drained\n",
        "",
        (LEASE + "a_drain_lets_the_stage_go_on_for_its_grace_and_no_longer",),
    ),
]

DURABILITY = [
    Mutant(
        "10_the_ledger_is_not_kept",
        "farm/servers.py",
        "appendonly yes",
        "appendonly no",
        (SERVERS + "the_ledger_is_kept_on_disk_and_nothing_of_it_is_evicted",),
    ),
    Mutant(
        "10_strict_is_everysec",
        "farm/servers.py",
        '"always" if durability == "strict" else "everysec"',
        '"everysec"',
        (SERVERS + "both_servers_killed_come_back_with_their_data_and_addresses",),
    ),
    Mutant(
        "10_a_full_server_forgets",
        "farm/servers.py",
        "maxmemory-policy noeviction",
        "maxmemory-policy allkeys-lru",
        (SERVERS + "the_ledger_is_kept_on_disk_and_nothing_of_it_is_evicted",),
    ),
    Mutant(
        "10_a_lost_reply_is_a_refusal",
        "farm/scripts.py",
        'raise _failed(error, lost) if lost == "unavailable" else Unavailable(code=lost) from error',
        "raise _failed(error) from error",
        (LEDGER + "a_submit_whose_reply_is_lost_yields_exactly_one_job",),
    ),
    Mutant(
        "10_jobs_without_a_key",
        "farm/client.py",
        "idem=job.idempotency_key",
        'idem=""',
        (OUTAGES + "a_run_that_broke_off_is_the_same_run_when_it_is_sent_again",),
    ),
]

MUTANTS = [
    *DOORBELLS,
    *LEASES,
    *TOKENS,
    *ATTEMPTS,
    *EXECUTIONS,
    *EVENTS,
    *RECORDS,
    *PROCESSES,
    *DURABILITY,
]
