"""The storage back end that the settings choose."""

from __future__ import annotations

from collections.abc import Callable

from ourvidz.errors import SettingsError
from ourvidz.jobs.catalog import READ_BUCKETS, WRITE_BUCKETS
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal
from ourvidz.storage.keys import CHECKPOINTS
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store


def open_store(settings: Settings) -> Store:
    """Return the configured storage. Nothing is read or written yet."""
    return _BACK_ENDS[settings.storage](settings)


def _local(settings: Settings) -> Store:
    return LocalStore(settings.storage_dir, public_url=settings.public_url)


def _s3(settings: Settings) -> Store:
    try:
        from ourvidz.storage.s3 import S3Store
        from ourvidz.storage.s3_client import S3Options
    except ImportError as missing:
        if (missing.name or "").partition(".")[0] != "obstore":
            raise
        raise SettingsError(
            "OURVIDZ_STORAGE: s3 needs obstore: pip install 'ourvidz[s3]'", field="OURVIDZ_STORAGE"
        ) from None
    assert settings.s3_bucket is not None
    return S3Store(
        S3Options(
            bucket=settings.s3_bucket,
            prefix=settings.s3_prefix or "",
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            region=settings.s3_region,
            path_style=settings.s3_path_style,
            checksum=settings.s3_checksum,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=reveal(settings.s3_secret_access_key),
        )
    )


def _supabase(settings: Settings) -> Store:
    from ourvidz.storage.supabase import SupabaseStore
    from ourvidz.storage.supabase_api import SupabaseAPI

    assert settings.supabase_url is not None
    assert settings.supabase_service_key is not None
    api = SupabaseAPI(settings.supabase_url, reveal(settings.supabase_service_key))
    checkpoints = CHECKPOINTS.partition("/")[0]
    return SupabaseStore(api, buckets=tuple(dict.fromkeys((*WRITE_BUCKETS, *READ_BUCKETS, checkpoints))))


_BACK_ENDS: dict[str, Callable[[Settings], Store]] = {
    "local": _local,
    "s3": _s3,
    "supabase": _supabase,
}
"""The back ends by the value of OURVIDZ_STORAGE; each imports its library when it is chosen."""
