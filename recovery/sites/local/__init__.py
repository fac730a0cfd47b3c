"""The local site: QEMU and qcow2 on this machine."""

from recovery.sites.local.site import LocalSite

__all__ = ["LocalSite"]
