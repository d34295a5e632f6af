"""The Celery configuration: data only, the same in every process.

Why these values: docs/decisions/0002-celery-on-redis.md.
"""

from __future__ import annotations

from kombu.entity import Exchange, Queue

from ourvidz.jobs.catalog import CATALOG, QUEUES
from ourvidz.sentinel_url import is_sentinel_url, parse_sentinel_url
from ourvidz.settings import settings

PRIORITY_SYNC, ENHANCEMENT, JOBS = 0, 3, 6
"""Priorities: 0 is the most urgent. Always passed explicitly; a message without one lands at 0."""

PRIORITY_STEPS = (0, 3, 6, 9)
"""The priorities that the broker keeps apart: each is a list of its own."""

CALLBACKS_QUEUE = "callbacks"
DELIVER_TASK = "ourvidz.callbacks.deliver"
"""How earlier releases ask for deliveries; see `ourvidz.dispatch.delivery_messages`."""
ENHANCE_TASK = "ourvidz.chat.enhance"
FLUSH_TASK = "ourvidz.admin.flush"
LOAD_TASK = "ourvidz.admin.load"
MOVE_TASK = "ourvidz.admin.move_model"
GENERATION_TASKS = frozenset(row.task for row in CATALOG.values())

_settings = settings()
_jobs = Exchange("ourvidz", type="direct")

_sentinels = parse_sentinel_url(_settings.redis_url) if is_sentinel_url(_settings.redis_url) else None
broker_url = _sentinels.broker_url if _sentinels else _settings.redis_url
broker_use_ssl = _sentinels.tls if _sentinels else None
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# A server that is full, or a primary without its replicas, refuses commands; a worker would exit at that.
broker_channel_error_retry = True
broker_pool_limit = 16
broker_transport_options = {
    "global_keyprefix": _settings.broker_prefix,
    "priority_steps": list(PRIORITY_STEPS),
    # A message that is lost with its worker is published again by a sweep. A list of those that are
    # not acknowledged would cost two writes a job, and bring one back after hours.
    "ack_emulation": False,
    "visibility_timeout": _settings.visibility_timeout_s,
    "socket_keepalive": True,
    "socket_connect_timeout": 5,
    "socket_timeout": 10,
    "health_check_interval": 10,
    "max_connections": 64,
}
if _sentinels:
    broker_transport_options |= {
        "master_name": _sentinels.service,
        "sentinel_kwargs": {
            **_sentinels.sentinel_options,
            "socket_connect_timeout": 1,
            "socket_timeout": 1,
        },
    }
task_publish_retry_policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}

task_serializer = "json"
accept_content = ["json"]
result_backend = None
task_ignore_result = True

task_queues = [Queue(name, _jobs, routing_key=name) for name in (*QUEUES.values(), CALLBACKS_QUEUE)]
task_create_missing_queues = False
task_default_queue = CALLBACKS_QUEUE
task_default_exchange = "ourvidz"
task_default_routing_key = CALLBACKS_QUEUE
task_default_priority = JOBS
task_routes = {
    **{row.task: {"queue": row.queue} for row in CATALOG.values()},
    DELIVER_TASK: {"queue": CALLBACKS_QUEUE},
    ENHANCE_TASK: {"queue": QUEUES["chat"]},
}

# The ledger, not the broker, brings a lost job back: an acknowledged message of a dead child is right.
task_acks_late = True
task_reject_on_worker_lost = False
worker_prefetch_multiplier = 1
# One more queue for each worker: what only the process that holds a model can do.
worker_direct = True
worker_cancel_long_running_tasks_on_connection_loss = False
# Celery's prefork pool, whose children ignore signals to the whole process group.
worker_pool = "ourvidz.pool:TaskPool"
# Events of tasks are published in batches, and not while a job starts or ends.
worker_consumer = "ourvidz.consumer:Consumer"
worker_pool_start_method = "spawn"
# Celery replaces a child that takes longer to start, for ever on a slow disk. The child loads models.
worker_proc_alive_timeout = max(600, _settings.model_load_s)
worker_send_task_events = True
worker_hijack_root_logger = False
worker_redirect_stdouts = False

TASK_MODULES = {
    "sdxl": ("ourvidz.tasks.sdxl", "ourvidz.tasks.admin"),
    "wan": ("ourvidz.tasks.wan", "ourvidz.tasks.admin"),
    "chat": ("ourvidz.tasks.chat", "ourvidz.tasks.enhancement", "ourvidz.tasks.admin"),
}
"""Worker → modules of the tasks in its queues. `admin` is also for the queue of each worker alone."""

imports = TASK_MODULES.get(_settings.worker or "") or tuple(
    dict.fromkeys(module for modules in TASK_MODULES.values() for module in modules)
)
