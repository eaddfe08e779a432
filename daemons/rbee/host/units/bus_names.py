"""Every D-Bus name that rbee uses, in one place; source: org.freedesktop.systemd1(5) and the D-Bus specification."""

DBUS = "org.freedesktop.DBus"
DBUS_PATH = "/org/freedesktop/DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"

SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
UNIT_ROOT = "/org/freedesktop/systemd1/unit"
MANAGER = "org.freedesktop.systemd1.Manager"
UNIT = "org.freedesktop.systemd1.Unit"
SERVICE = "org.freedesktop.systemd1.Service"

ALREADY_SUBSCRIBED = "org.freedesktop.systemd1.AlreadySubscribed"
NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
LOAD_FAILED = "org.freedesktop.systemd1.LoadFailed"
BAD_UNIT_SETTING = "org.freedesktop.systemd1.BadUnitSetting"
UNIT_MASKED = "org.freedesktop.systemd1.UnitMasked"
ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
AUTHORIZATION_REQUIRED = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"

WORKER_UNITS = "rbee-worker@*.service"
WORKER_PATH_PREFIX = UNIT_ROOT + "/rbee_2dworker_40"

MATCHES = (
    f"type='signal',sender='{DBUS}',path='{DBUS_PATH}',interface='{DBUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
    *(
        f"type='signal',sender='{SYSTEMD}',path_namespace='{UNIT_ROOT}',interface='{PROPERTIES}',"
        f"member='PropertiesChanged',arg0='{interface}'"
        for interface in (UNIT, SERVICE)
    ),
    *(
        f"type='signal',sender='{SYSTEMD}',path='{SYSTEMD_PATH}',interface='{MANAGER}',member='{member}'"
        for member in ("UnitRemoved", "JobRemoved", "Reloading")
    ),
)

# What UnitFacts needs. The Service interface comes first, as in systemd's own order of signals, so that the unit's
# state is never read before what explains it.
READ_PROPERTIES = (
    (SERVICE, "Result"),
    (SERVICE, "MainPID"),
    (SERVICE, "StatusText"),
    (SERVICE, "NRestarts"),
    (SERVICE, "ExecMainCode"),
    (SERVICE, "ExecMainStatus"),
    (UNIT, "InvocationID"),
    (UNIT, "InactiveExitTimestampMonotonic"),
    (UNIT, "ActiveEnterTimestampMonotonic"),
    (UNIT, "LoadState"),
    (UNIT, "SubState"),
    (UNIT, "ActiveState"),
)
