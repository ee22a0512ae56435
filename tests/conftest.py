"""What all tests share: keys and a network by name, and Hypothesis without a stopwatch.

A test fails by what is computed, never by how long it took: the machines that
run it are shared. Hypothesis prints the example that reproduces a failure.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests import running
from xsc.identity.keys import KeyPair, network_id

settings.register_profile(
    "xsc",
    max_examples=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("long", settings.get_profile("xsc"), max_examples=500)
settings.register_profile("thorough", settings.get_profile("xsc"), max_examples=5_000)
# Finds a failure, and looks for no smaller one: without the phases "target", "shrink", "explain".
settings.register_profile(
    "first", settings.get_profile("xsc"), phases=settings.get_profile("xsc").phases[:3]
)
# They need other programs, and are run by `make apps` and `make check`.
collect_ignore = [] if "TEST_APPS" in os.environ else ["apps"]
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "xsc"))

# A shell has what it starts in the background ignore this one, and so do all its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def network() -> bytes:
    return network_id("test")


@pytest.fixture(scope="session")
def alice() -> KeyPair:
    return KeyPair(b"\xa1" * 32)


@pytest.fixture(scope="session")
def bob() -> KeyPair:
    return KeyPair(b"\xb0" * 32)


def pytest_xdist_auto_num_workers(config):
    """Return one worker more than there are cores: tests of real nodes mostly wait for them.

    Where tests are timed there is one a core, so that none waits for others.
    """
    return (os.cpu_count() or 1) + ("TEST_TIMES" not in os.environ)


def pytest_xdist_make_scheduler(config, log):
    return running.Files(config, log) if config.getvalue("dist") == "loadgroup" else None


LONG_FIRST = ("apps", "e2e", "sim", "properties", "unit")
"""What takes long begins early, so that no worker ends long after the others."""


def pytest_configure(config):
    if "TEST_TIMES" in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(running.Times())


# Each takes seconds of a core, and its law is played elsewhere, too; `make test-long` plays them.
LONG = (
    "test_a_node_that_nobody_can_dial_is_told_what_helps",
    "test_where_a_third_of_all_packets_is_lost_nobody_is_absent",
    "test_who_was_cut_off_is_absent_comes_back_and_blames_nobody",
    "test_three_friends_behind_routers_meet_by_the_recipe",
    "test_every_game_keeps_the_laws_and_pays_no_lie",
    "test_a_put_that_takes_more_than_an_hour_keeps_its_hosts",
    "test_repair_heals_where_the_contract_cannot_be_kept_and_moves_back_when_a_peer_joins",
    "test_a_node_that_was_cut_off_has_changed_no_score_and_repaired_nothing[60]",
    "test_what_a_node_sends_in_a_period_does_not_grow_with_the_number_of_nodes[200]",
    "test_with_one_host_stalled_and_one_crawling_reads_take_as_long_as_ever[1048576]",
    "test_only_the_owner_releases_what_custodians_have_stored_elsewhere_meanwhile",
    "test_fifty_nodes_converge_while_they_write_for_ten_minutes[4]",
    "test_a_backup_during_a_storm_holds_all_that_was_acknowledged",
    "test_repair_says_what_moved_and_what_did_not",
    "test_up_down_and_up_again",
    "test_a_captured_request_works_once_also_over_restarts",
    "test_reads_do_not_wait_for_stopped_hosts[65536-3-7]",
    "test_the_demo_holds",
    "test_two_programs_that_feed_each_other_back_off",
    "test_a_node_that_falls_again_and_again_is_trusted_less_each_time",
    "test_custodians_heal_while_the_owner_is_away_and_it_takes_over_when_it_is_back[True]",
    "test_on_seven_nodes",
    "test_one_invitation_makes_a_member_and_its_first_put_lies_on_six_nodes[12]",
    "test_where_nothing_can_be_deleted_hosts_are_asked_no_more_often_than_ever",
    "test_no_nonce_ever_protects_two_contents",
    "test_with_the_owner_away_one_custodian_keeps_an_object_for_ever_and_gives_it_back",
    "test_a_seed_gives_the_same_story_each_time",
    "test_a_file_of_another_length_is_never_mixed_in[20983865]",
    "test_the_weakest_object_is_repaired_first",
    "test_a_peer_that_changes_a_value_ten_thousand_times_makes_few_frames",
    "test_two_nodes_whose_programs_feed_each_other_back_off",
    "test_a_deleted_object_is_in_custody_no_more",
    "test_reads_do_not_wait_for_stopped_hosts[12582912",
    "test_any_dead_peer_stops_no_recovery[4]",
    "test_any_dead_peer_stops_no_recovery[6]",
    "test_an_owner_that_loses_its_power_while_it_takes_back_pays_for_all_that_it_keeps[5]",
    "test_an_owner_that_loses_its_power_while_it_takes_back_pays_for_all_that_it_keeps[7]",
    "test_the_objects_of_a_once_lone_node_spread_when_peers_join[8]",
    "test_fault_7_a_stamp_takes_a_byte_for_each_active_holder[256]",
    "test_the_key_and_one_friend_are_enough_where_a_peer_is_gone_for_good",
    "test_a_kill_in_a_put_sends_at_most_a_segment_again[client]",
    "test_a_kill_in_a_put_sends_at_most_a_segment_again[host]",
    "test_a_host_killed_in_a_get_is_not_noticed",
    "test_a_put_that_was_interrupted_begins_anew_where_the_file_was_changed",
    "test_a_custodian_that_loses_its_power_while_it_takes_over_pays_for_all_that_it_keeps[6-True]",
    "test_a_custodian_that_loses_its_power_while_it_takes_over_pays_for_all_that_it_keeps[4-True]",
    "test_what_a_killed_put_has_sent_is_deleted_once_its_owner_is_back[130-False-9437184]",
    "test_what_a_killed_put_has_sent_is_deleted_once_its_owner_is_back[90-False-9437184]",
    "test_a_put_replaces_hosts_that_stand_still[9437184]",
    "test_what_nobody_goes_on_with_is_deleted_in_time[False]",
    "test_reads_do_not_wait_for_stopped_hosts[3145728",
    "test_a_file_of_another_length_is_never_mixed_in[8388609]",
    "test_friends_go_from_nothing_to_a_file_that_comes_back",
    "test_a_node_leaves_while_others_read_and_its_proof_holds",
    "test_a_backup_brings_the_space_back",
    "test_one_program_reads_what_another_publishes_and_a_kill_changes_no_result",
    "test_a_kill_in_a_get_fetches_at_most_a_segment_again",
    "test_client_and_nodes_stay_small_whatever_the_size",
    "test_custodians_do_nothing_while_the_owner_answers",
    "test_the_first_put_after_a_host_lost_its_disk_lies_on_as_many_nodes_as_ever",
    "test_an_owner_killed_in_the_middle_of_a_repair_finishes_it_and_leaves_nothing[110]",
    "test_an_owner_waits_with_deleting_until_it_has_read_all_that_remains",
    "test_a_host_that_was_thinned_loses_pay_back_to_its_last_ok_each_time",
    "test_at_half_life_what_a_put_leased_for_now_is_cleared_against_the_needs_of_friends",
)


def pytest_collection_modifyitems(config, items):
    """Leave out what is long, unless all of it is wanted or one test is named."""
    items.sort(key=lambda item: rank(running.folder_of(item.nodeid)))
    if "TEST_LONG" in os.environ or any("::" in arg for arg in config.args):
        return
    long = [item for item in items if item.name.startswith(LONG)]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.name.startswith(LONG)]


def rank(folder: str) -> int:
    return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)
