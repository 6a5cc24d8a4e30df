"""Services to be hurt: those of the integration tests."""

from tests.integration.conftest import model_home, new_home, pytest_itemcollected  # noqa: F401  # fixtures and a hook
