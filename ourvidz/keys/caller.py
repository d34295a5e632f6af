"""Who a request comes from, and which users' jobs and files that caller may see."""

from __future__ import annotations

from dataclasses import dataclass

SCOPES = frozenset({"jobs", "chat", "admin", "read"})
"""`read`: what autoscalers read; it changes nothing and shows no job."""
BOUND_SCOPES = frozenset({"jobs", "chat"})
"""Those that a key bound to users may have: the others reach beyond users."""
DEFAULT_RATE_CLASS = "default"


@dataclass(frozen=True, slots=True)
class UserBinding:
    """The users of a bound key: one user, or all whose ids begin with a prefix. Exactly one is set."""

    user_id: str | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        if bool(self.user_id) == bool(self.prefix):
            raise ValueError("a binding has either a user or a prefix")

    def includes(self, user_id: str | None) -> bool:
        """Whether the binding includes a user; never what has no user."""
        if not user_id:
            return False
        return user_id == self.user_id if self.user_id else user_id.startswith(self.prefix or "")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from.

    `name` appears in the audit log. `key_id` identifies the key: the id of a stored key, the name of one in
    the settings, or of the key that a token was made with; None for a caller without a key. `rate_class`
    names the limits of the key. `binding`: the users it is bound to, None for all. `job_id`: the only job
    that a token is for.
    """

    name: str
    key_id: str | None = None
    scopes: frozenset[str] = frozenset()
    rate_class: str = DEFAULT_RATE_CLASS
    binding: UserBinding | None = None
    job_id: str | None = None

    @property
    def bound(self) -> bool:
        """Whether there are users whose jobs and files it must not see."""
        return self.binding is not None or self.job_id is not None

    def sees_user(self, user_id: str | None) -> bool:
        """Whether it may see everything of a user. `user_id` is None for what belongs to no user."""
        return self.job_id is None and (self.binding is None or self.binding.includes(user_id))

    def sees_job(self, job_id: str, user_id: str | None) -> bool:
        """Whether it may see a job of a user."""
        if self.job_id is not None and (
            self.job_id != job_id or (self.binding is None and user_id is not None)
        ):
            # A token for a job of no user is none for a user's job that has that id later, or had it before.
            return False
        return self.binding is None or self.binding.includes(user_id)


LOCAL = Caller("local")
"""Everybody who reaches a shim without keys."""
ANYONE = Caller("anyone")
"""Callers without a key, at open routes."""
