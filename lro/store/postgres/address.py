"""Where a database is: what a URL may say, and what is said of it without its password."""

from dataclasses import dataclass

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["Address", "address_of"]

DEFAULTS: dict[str, str] = {
    "application_name": "lro",
    "target_session_attrs": "read-write",  # of several hosts, the one that may write: reads go there too
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}


@dataclass(frozen=True, slots=True)
class Address:
    """How a database is reached.

    Attributes:
        conninfo: What libpq is told; may hold a password.
        where: The same for people: host, port and database.
        name: The database's name.
    """

    conninfo: str
    where: str
    name: str

    def __repr__(self) -> str:
        """Leave the password out."""
        return f"Address({self.where!r})"


def address_of(url: str) -> Address:
    """Read a `postgresql://` URL; its query may say what libpq knows, such as `sslmode`.

    Raises:
        ValueError: libpq can't read it, or does not know a key of its query.
    """
    try:
        said = {key: str(value) for key, value in conninfo_to_dict(url).items()}
    except ProgrammingError as error:
        scheme = url.partition(":")[0]
        msg = f"{scheme}:... is no URL that libpq understands: {str(error).strip().replace(url, '...')}"
        raise ValueError(msg) from None  # its traceback would show the password
    host, port = said.get("host", said.get("hostaddr", "localhost")), said.get("port", "5432")
    name = said.get("dbname", said.get("user", "postgres"))
    return Address(make_conninfo(**{**DEFAULTS, **said}), f"postgresql://{host}:{port}/{name}", name)
