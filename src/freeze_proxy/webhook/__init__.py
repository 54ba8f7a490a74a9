"""``freeze-proxy webhook``: puts the sidecar into pods as they are created. ``inject`` decides, purely."""

from freeze_proxy.webhook.settings import Failure, Settings

__all__ = ["Failure", "Settings", "check_uninstall", "run"]


def run(settings: Settings) -> int:
    """Answer reviews until a signal; returns the exit code."""
    import sys

    from freeze_proxy import logs

    logs.set_up(settings.log_level, of_libraries="ERROR")
    try:
        from freeze_proxy.webhook import app

        return app.serve(settings)
    except Failure as failure:
        print(f"freeze-proxy: {failure}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"freeze-proxy: The webhook needs {error.name}: pip install 'freeze-proxy[cluster]'.", file=sys.stderr)
    return 125


def check_uninstall(kubeconfig: str | None, context: str | None, namespace: str, as_json: bool) -> int:
    """Print what is left of freeze-proxy in the cluster; returns the exit code."""
    import sys

    try:
        from freeze_proxy.webhook import uninstall

        return uninstall.run(kubeconfig, context, namespace, as_json)
    except Failure as failure:
        print(f"freeze-proxy: {failure}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"freeze-proxy: This needs {error.name}: pip install 'freeze-proxy[cluster]'.", file=sys.stderr)
    return 125
