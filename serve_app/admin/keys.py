"""Keys of accounts: `/v1/admin/keys`."""

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from serve_app.admin.call import administrator, once, read_body
from serve_app.admin.documents import KEY, LIMITS, NEW_KEY
from serve_app.admin.key_wire import KeyChange, NewKey, Rotation, key_object, to_grant
from serve_app.http.documented import documented, page_of
from serve_app.http.query import parse_query
from serve_app.http.resources import PageQuery, json_answer, page_object, path_id
from serve_app.http.times import from_iso
from serve_app.services import Services


class KeysQuery(PageQuery):
    account: str | None = Field(None, description="Only the keys of this account.")


def add_routes(routes: APIRouter, services: Services) -> None:
    @once(services)
    async def create_key(request: Request) -> Response:
        """Makes a key of an account. Its text, `key`, is in this answer only."""
        admin = await administrator(request, services)
        account = await services.accounts.get(path_id(request, "account"))
        body = await read_body(request, services, NewKey)
        text, record = await services.keys.create(
            account.id,
            body.name,
            actor=admin.key_id,
            grant=to_grant(body, services.models.catalog),
            expires_at=from_iso(body.expires_at, "expires_at"),
        )
        return json_answer({**key_object(record), "key": text}, status=201, location=f"/v1/admin/keys/{record.id}")

    async def list_keys(request: Request) -> Response:
        """Keys, oldest first, revoked ones too."""
        await administrator(request, services)
        query = parse_query(KeysQuery, request)
        keys = await services.keys.list(query.account, after=query.after, limit=query.limit + 1)
        return json_answer(page_object(keys, query.limit, key_object, lambda record: record.id))

    async def get_key(request: Request) -> Response:
        """One key, without its secret."""
        await administrator(request, services)
        return json_answer(key_object(await services.keys.get(path_id(request, "key"))))

    async def change_key(request: Request) -> Response:
        """Changes what a key may do. Every process knows within 5 seconds."""
        admin = await administrator(request, services)
        # The body first: it may take its time to come, and another change is not to be undone meanwhile.
        body = await read_body(request, services, KeyChange)
        present = await services.keys.get(path_id(request, "key"))
        changed = await services.keys.change(
            present.id, to_grant(body, services.models.catalog, present=present.grant), actor=admin.key_id
        )
        return json_answer(key_object(changed))

    @once(services)
    async def rotate_key(request: Request) -> Response:
        """Gives a key a new secret, which is in this answer only; id, limits, budget and usage stay."""
        admin = await administrator(request, services)
        present = await services.keys.get(path_id(request, "key"))
        body = await read_body(request, services, Rotation)
        text, record = await services.keys.rotate(present.id, overlap_s=body.overlap_s, actor=admin.key_id)
        return json_answer({**key_object(record), "key": text}, status=201)

    async def revoke_key(request: Request) -> Response:
        """Ends a key for good. Every process refuses it within 5 seconds."""
        admin = await administrator(request, services)
        key_id = path_id(request, "key")
        await services.keys.revoke(key_id, actor=admin.key_id)
        return json_answer(key_object(await services.keys.get(key_id)))

    path = "/v1/admin/keys"
    created = documented(
        "Create a key",
        answer=NEW_KEY,
        created=True,
        body=NewKey,
        requests={
            "plain": {"name": "laptop"},
            "bounded": {"name": "production", "budget": 10000.5, "models": ["standard"], "limits": LIMITS},
        },
    )
    routes.add_api_route("/v1/admin/accounts/{account}/keys", create_key, methods=["POST"], **created)
    routes.add_api_route(
        path, list_keys, methods=["GET"], **documented("List keys", answer=page_of(KEY), query=KeysQuery)
    )
    one = f"{path}/{{key}}"
    routes.add_api_route(one, get_key, methods=["GET"], **documented("Retrieve a key", answer=KEY))
    changed = documented(
        "Change a key",
        answer=KEY,
        body=KeyChange,
        requests={"limits": {"limits": LIMITS}, "no budget": {"budget": None}},
    )
    routes.add_api_route(one, change_key, methods=["PATCH"], **changed)
    revoked = documented("Revoke a key", answer={**KEY, "revoked_at": "2026-02-28T08:00:00Z"})
    routes.add_api_route(one, revoke_key, methods=["DELETE"], **revoked)
    rotated = documented(
        "Rotate a key", answer=NEW_KEY, created=True, body=Rotation, requests={"a day": {"overlap_s": 86400}}
    )
    routes.add_api_route(f"{one}/rotate", rotate_key, methods=["POST"], **rotated)
