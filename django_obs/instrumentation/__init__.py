"""Django's own hooks -> one measurement each -> scope (the access line), span leaf, metric slot."""

from __future__ import annotations
