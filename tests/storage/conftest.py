"""Shows the values in failed assertions of the suite that back ends share."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.storage.suite")
