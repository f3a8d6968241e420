"""What does the farm say over HTTP?

JSON under `/api/v1`, described by `/api/v1/openapi.json`; live events as Server-Sent Events; errors as
`application/problem+json` (RFC 9457). The only asynchronous room: the farm's own calls run in threads (`desk`).

One call's way: `guard` (size, headers) → `door` (who asks, can the body be read) → the route's module → `desk` → the
farm's client. `make_app` puts them together, `serve` runs them.
"""
