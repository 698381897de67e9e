"""Every public call of the SDKs is driven by a test that is named here, or refused by name: what a new release adds shows up."""

import ast
import functools
import inspect
import pathlib

import pytest
from e2b import (
    AsyncCommandHandle,
    AsyncCommandInputHandle,
    AsyncSandbox,
    AsyncSandboxPaginator,
    AsyncSecret,
    AsyncSnapshotPaginator,
    AsyncTemplate,
    AsyncVolume,
    AsyncWatchHandle,
    CommandHandle,
    Sandbox,
    SandboxPaginator,
    Secret,
    SnapshotPaginator,
    Template,
    Volume,
    WatchHandle,
)

#: What the objects of a sandbox are, by the property that leads to them.
PARTS = ("commands", "files", "git", "pty")

REFUSED = "test_refusals.test_calls_are_refused_with_501"
HANDLES = "test_handles."
GIT = "test_git."

SANDBOX = {
    "create": "test_forms.test_a_client_with_a_key_of_its_own_needs_no_environment",
    "connect": "test_forms.test_a_paused_object_connects_itself",
    "list": "test_forms.test_a_list_goes_on_from_a_token",
    "get_info": "test_forms.test_what_an_object_can_its_id_can",
    "kill": "test_forms.test_what_an_object_can_its_id_can",
    "set_timeout": "test_forms.test_what_an_object_can_its_id_can",
    "update_network": "test_forms.test_what_an_object_can_its_id_can",
    "pause": "test_forms.test_a_paused_object_connects_itself",
    "beta_pause": "test_forms.test_a_paused_object_connects_itself",
    "get_metrics": "test_forms.test_metrics_are_cut_to_a_time",
    "is_running": "test_forms.test_a_paused_object_connects_itself",
    "get_host": "test_forms.test_addresses_are_told",
    "get_mcp_url": "test_forms.test_addresses_are_told",
    "get_mcp_token": "test_forms.test_the_token_of_a_gateway_is_read_as_root",
    "fork": "test_snapshots.test_forks_go_their_own_ways",
    "create_snapshot": "test_snapshots.test_a_named_snapshot_has_tags",
    "list_snapshots": "test_snapshots.test_a_named_snapshot_has_tags",
    "delete_snapshot": "test_snapshots.test_a_snapshot_is_deleted_once",
}
CLONES = GIT + "test_commits_travel_through_the_remote"
GIT_CALLS = {
    "clone": CLONES,
    "push": CLONES,
    "pull": CLONES,
    "init": GIT + "box",
    "remote_add": GIT + "test_remotes_are_read_added_and_replaced",
    "remote_get": GIT + "test_remotes_are_read_added_and_replaced",
    "add": GIT + "test_work_is_staged_committed_and_shown",
    "commit": GIT + "test_work_is_staged_committed_and_shown",
    "status": GIT + "test_work_is_staged_committed_and_shown",
    "branches": GIT + "test_branches_are_made_left_and_deleted",
    "create_branch": GIT + "test_branches_are_made_left_and_deleted",
    "checkout_branch": GIT + "test_branches_are_made_left_and_deleted",
    "delete_branch": GIT + "test_branches_are_made_left_and_deleted",
    "reset": GIT + "test_changes_are_taken_back",
    "restore": GIT + "test_changes_are_taken_back",
    "set_config": GIT + "test_settings_are_kept_where_they_are_put",
    "get_config": GIT + "test_settings_are_kept_where_they_are_put",
    "configure_user": GIT + "test_settings_are_kept_where_they_are_put",
    "dangerously_authenticate": GIT + "test_a_guarded_remote_wants_credentials",
}
COMMANDS = {
    "run": HANDLES + "test_a_handle_writes_closes_and_waits",
    "list": HANDLES + "test_a_command_outlives_the_handle_that_lets_go",
    "connect": HANDLES + "test_a_command_outlives_the_handle_that_lets_go",
    "kill": HANDLES + "test_a_command_outlives_the_handle_that_lets_go",
}
HANDLE = {
    "wait": HANDLES + "test_a_handle_writes_closes_and_waits",
    "send_stdin": HANDLES + "test_a_handle_writes_closes_and_waits",
    "close_stdin": HANDLES + "test_a_handle_writes_closes_and_waits",
    "kill": HANDLES + "test_a_handle_kills_its_command",
    "disconnect": HANDLES + "test_a_command_outlives_the_handle_that_lets_go",
}
TEMPLATE = {
    "exists": "test_templates.test_tags_name_builds",
    "alias_exists": "test_refusals.test_what_can_be_read_of_templates_is_read",
    "get_tags": "test_templates.test_tags_name_builds",
    "assign_tags": "test_templates.test_tags_name_builds",
    "remove_tags": "test_templates.test_tags_name_builds",
    "build": "test_templates.test_tags_name_builds",
    "build_in_background": "test_templates.test_a_build_goes_on_in_the_background_and_tells_how_far_it_is",
    "get_build_status": "test_templates.test_a_build_goes_on_in_the_background_and_tells_how_far_it_is",
}
SECRET = dict.fromkeys(["create", "destroy", "exists", "get_info", "list", "update"], REFUSED)
FILES_OF_VOLUMES = "test_volumes.test_files_are_written_read_listed_and_removed_from_outside"
VOLUME = dict.fromkeys(["connect", "create", "destroy", "get_info", "list"], "test_volumes.test_a_volume_is_found_and_destroyed") | dict.fromkeys(
    ["exists", "make_dir", "read_file", "remove", "update_metadata", "write_file"], FILES_OF_VOLUMES
)


#: What each class offers, and which test drives it.
DRIVEN = {
    Sandbox: SANDBOX | dict.fromkeys(["download_url", "upload_url"], "test_files.test_signed_urls_need_no_header"),
    AsyncSandbox: SANDBOX | dict.fromkeys(["download_url", "upload_url"], "test_async.test_signed_urls_need_no_header"),
    "sync commands": COMMANDS
    | {
        "send_stdin": "test_commands.test_stdin_is_written_and_closed",
        "close_stdin": "test_commands.test_stdin_is_written_and_closed",
        "stream_input": "test_commands.test_stdin_is_streamed",
    },
    "async commands": COMMANDS | dict.fromkeys(["send_stdin", "close_stdin", "stream_input"], "test_async.test_commands"),
    "sync files": {
        "exists": "test_files.test_a_file_that_is_not_there_or_not_a_file",
        "get_info": "test_files.test_entries_are_described",
        "list": "test_files.test_directories_are_made_listed_and_removed",
        "make_dir": "test_files.test_directories_are_made_listed_and_removed",
        "remove": "test_files.test_directories_are_made_listed_and_removed",
        "rename": "test_files.test_files_are_renamed_over_others",
        "read": "test_files.test_bytes_survive_whole",
        "write": "test_files.test_bytes_survive_whole",
        "write_files": "test_files.test_many_files_are_written_at_once",
        "watch_dir": HANDLES + "test_a_watch_may_be_of_a_network_mount",
    },
    "async files": dict.fromkeys(
        ["exists", "get_info", "list", "make_dir", "read", "remove", "rename", "write", "write_files"], "test_async.test_files"
    )
    | {"watch_dir": HANDLES + "test_an_async_watch_tells_entries_and_its_end"},
    "sync pty": {
        "create": "test_pty.test_a_terminal_echoes_resizes_and_ends",
        "resize": "test_pty.test_a_terminal_echoes_resizes_and_ends",
        "send_stdin": "test_pty.test_a_terminal_echoes_resizes_and_ends",
        "stream_input": "test_pty.test_a_terminal_echoes_resizes_and_ends",
        "connect": "test_pty.test_a_terminal_is_joined_and_killed",
        "kill": "test_pty.test_a_terminal_is_joined_and_killed",
    },
    "async pty": {
        "create": "test_async.test_a_terminal",
        "resize": "test_async.test_a_terminal",
        "send_stdin": "test_async.test_a_terminal",
        "kill": "test_async.test_a_terminal",
        "connect": HANDLES + "test_an_async_terminal_is_joined_and_typed_into_by_stream",
        "stream_input": HANDLES + "test_an_async_terminal_is_joined_and_typed_into_by_stream",
    },
    "sync git": GIT_CALLS,
    "async git": GIT_CALLS,
    CommandHandle: HANDLE,
    AsyncCommandHandle: HANDLE,
    AsyncCommandInputHandle: dict.fromkeys(["send", "close"], HANDLES + "test_an_async_stream_of_input_is_closed_by_hand"),
    WatchHandle: dict.fromkeys(["get_new_events", "stop"], HANDLES + "test_a_watch_may_be_of_a_network_mount"),
    AsyncWatchHandle: {"stop": HANDLES + "test_an_async_watch_tells_entries_and_its_end"},
    SandboxPaginator: {"next_items": "test_forms.test_a_list_goes_on_from_a_token"},
    AsyncSandboxPaginator: {"next_items": "test_forms.test_a_list_goes_on_from_a_token"},
    SnapshotPaginator: {"next_items": "test_snapshots.test_snapshots_are_paged"},
    AsyncSnapshotPaginator: {"next_items": "test_snapshots.test_snapshots_are_paged"},
    Template: TEMPLATE,
    AsyncTemplate: TEMPLATE,
    Secret: SECRET,
    AsyncSecret: SECRET,
    Volume: VOLUME,
    AsyncVolume: VOLUME,
}

#: Classes of which the calls by name alone count: what is called on an object of theirs asks no server.
BY_NAME_ALONE = (Template, AsyncTemplate, Secret, AsyncSecret)


def calls(cls):
    """The public calls of a class; of those that are `BY_NAME_ALONE`, the ones that ask the server."""
    names = {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}
    if cls in BY_NAME_ALONE:
        names = {name for name in names if type(inspect.getattr_static(cls, name)).__name__ in ("classmethod", "DualMethod")}
    return names


@functools.cache
def module(name):
    return ast.parse((pathlib.Path(__file__).parent / f"{name}.py").read_text())


def is_driven(call, test):
    """Whether that test, with what it shares with its module, says `.call`."""
    name, wanted = test.split(".")
    tests = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = [node for node in module(name).body if not isinstance(node, tests) or node.name == wanted or not node.name.startswith("test_")]
    assert wanted in [node.name for node in body if isinstance(node, tests)], f"{test} is not there"
    return any(isinstance(node, ast.Attribute) and node.attr == call for part in body for node in ast.walk(part))


@pytest.mark.parametrize("cls", [cls for cls in DRIVEN if not isinstance(cls, str)], ids=lambda cls: cls.__name__)
def test_every_call_of_a_class_is_driven(cls):
    check(calls(cls), DRIVEN[cls])


@pytest.mark.parametrize("part", PARTS)
async def test_every_call_of_a_part_is_driven(sdk, make, part):
    sandbox = await make()
    check(calls(type(getattr(sandbox, part))), DRIVEN[f"{'sync' if sdk is Sandbox else 'async'} {part}"])


def check(offered, driven):
    assert offered == set(driven)
    assert [call for call, test in driven.items() if not is_driven(call, test)] == []


@pytest.mark.parametrize("sdk_class", [Sandbox, AsyncSandbox])
def test_no_part_of_a_sandbox_is_forgotten(sdk_class):
    def leads_to_a_class_of_its_own(name):
        found = inspect.getattr_static(sdk_class, name)
        return isinstance(found, property) and inspect.signature(found.fget).return_annotation not in (str, inspect.Signature.empty)

    parts = {name for name in dir(sdk_class) if not name.startswith("_") and leads_to_a_class_of_its_own(name)}
    assert parts - {"connection_config", "traffic_access_token", "sandbox_domain"} == set(PARTS)
