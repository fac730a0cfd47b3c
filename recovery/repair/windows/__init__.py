"""Boot repair of Windows replicas: registry hives, the boot configuration, UEFI's fallback path, the first boot."""
