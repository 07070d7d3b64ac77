"""Saved views, which the task list and the palette offer to everyone: save, rename and delete."""

from collections.abc import Callable
from urllib.parse import parse_qs

from celery_monitor.control.views import DeleteView, RenameView, SaveView, ViewCommand
from celery_monitor.errors import MonitorError
from celery_monitor.store.views import read_views
from celery_monitor.web.pages import Act, Context, Form, FormRequest, Page, Result, View, command_of, fields, whole
from celery_monitor.web.security.reach import IN_PART


def context(view: View) -> Context:
    return {
        "views": read_views(view.store),
        "may_change": view.may("view.rename"),
    }


def _to_list(form: Form) -> Result:
    """Back to the list that the form belongs to."""
    path = form.get("path", "")
    own = path.startswith("/") and not path.startswith("//")
    return Result(path if own else "/tasks", parse_qs(form.get("query", "")))


def _to_views(_: Form) -> Result:
    return Result("/views")


def _action(make: Callable[[Form], ViewCommand], to: Callable[[Form], Result]) -> Act:
    def act(view: View, request: FormRequest) -> Result:
        form = fields(request.form)
        place = to(form)
        query = {"cluster": view.cluster, **place.query}
        try:
            performed = request.controller.perform(request.actor, make(form))
        except MonitorError as error:
            return Result(place.to, query, error.message, "bad")
        return Result(place.to, query, performed.message)

    return act


def _save(form: Form) -> SaveView:
    return SaveView(name=form.get("name", ""), path=form.get("path", ""), query_string=form.get("query", ""))


def _rename(form: Form) -> RenameView:
    return command_of(RenameView, form)


def _delete(form: Form) -> DeleteView:
    return command_of(DeleteView, form, view=whole(form, "view"))


PAGE = Page(
    "/views",
    "views.html",
    context,
    title="Saved views",
    actions={
        "save": _action(_save, _to_list),
        "rename": _action(_rename, _to_views),
        "delete": _action(_delete, _to_views),
    },
    access=IN_PART,
)
