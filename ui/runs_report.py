"""A run's report as a page of its own: /files/report?run=NAME, for owners of the project."""

import fastapi
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from lorarlhf.evaluation.report import write_report
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf_ui.security import is_owner

REPORT = "report.html"
# The report holds text of models. It is escaped, and in no case may the page run or load anything.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


def add_report(app: fastapi.FastAPI, project: Project) -> None:
    """Add the route to an app; before Gradio is mounted, since it takes all paths."""

    @app.get("/files/report")
    def report(request: fastapi.Request, run: str = "") -> Response:
        if not is_owner(request):
            return PlainTextResponse("Only an owner of this project can see reports.", 403)
        folder = next((one for one in project.runs() if one.name == run), None)
        if folder is None:
            return PlainTextResponse("There is no such run. It may have been deleted.", 404)
        file = folder / REPORT
        try:
            # Of a run that goes on, or was stopped, the report shows what there is now.
            done = read_json(folder / "run.json").get("status") == "done"
            if not (done and file.is_file()):
                file = write_report(folder)
            page = file.read_text(encoding="utf-8")
        except (OSError, ValueError, UserError) as error:
            return PlainTextResponse(f"There is no report on {run}: {error}", 404)
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})
