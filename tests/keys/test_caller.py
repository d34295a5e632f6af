"""Who a request comes from, and whose jobs and files that caller may see."""

from __future__ import annotations

import pytest

from ourvidz.keys.caller import ANYONE, LOCAL, Caller, UserBinding


@pytest.mark.parametrize("caller", [LOCAL, ANYONE, Caller("shop", "shop", frozenset({"jobs"}))])
def test_a_caller_that_is_not_bound_sees_everybody(caller: Caller) -> None:
    """Keys of the settings have no users: existing callers keep what they can do."""
    assert not caller.bound
    assert caller.sees_user("ann")
    assert caller.sees_user(None)
    assert caller.sees_job("job-1", None)


@pytest.mark.parametrize(
    ("binding", "seen", "hidden"),
    [
        (UserBinding(user_id="ann"), ("ann",), ("anna", "an", "Ann", "bob", "", None)),
        (UserBinding(prefix="shop-"), ("shop-", "shop-1"), ("shop", "Shop-1", "my-shop-1", "", None)),
    ],
)
def test_a_bound_caller_sees_its_users_only(binding: UserBinding, seen, hidden) -> None:
    """What belongs to no user belongs to nobody's key."""
    caller = Caller("key", "1", frozenset({"jobs"}), binding=binding)
    assert caller.bound
    assert all(caller.sees_user(user) and caller.sees_job("job-1", user) for user in seen)
    assert not any(caller.sees_user(user) or caller.sees_job("job-1", user) for user in hidden)


def test_a_caller_with_a_token_for_one_job_sees_that_job_only() -> None:
    """Also of a user whose key made it; and not a later job of another user under the same id."""
    caller = Caller("key", "1", binding=UserBinding(user_id="ann"), job_id="job-1")
    assert caller.sees_job("job-1", "ann")
    assert not caller.sees_job("job-2", "ann")
    assert not caller.sees_job("job-1", "bob")
    assert not caller.sees_user("ann")


def test_a_token_for_a_job_of_no_user_sees_no_job_of_a_user() -> None:
    """Under the id of a job that is deleted there may be another one, or files of one before it."""
    caller = Caller("token", "settings:ops", job_id="job-1")
    assert caller.sees_job("job-1", None)
    assert not caller.sees_job("job-1", "bob")


@pytest.mark.parametrize("parts", [{}, {"user_id": "ann", "prefix": "a"}, {"user_id": ""}, {"prefix": ""}])
def test_a_binding_is_a_user_or_a_prefix(parts: dict[str, str]) -> None:
    """An empty prefix would include everybody."""
    with pytest.raises(ValueError, match="either"):
        UserBinding(**parts)
