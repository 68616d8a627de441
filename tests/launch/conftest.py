from tests.launch.toy import toy  # noqa: F401
