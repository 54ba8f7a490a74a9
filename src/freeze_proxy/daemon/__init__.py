"""``freeze-proxy daemon``: on every node, freezes the containers of the pod that asks, and of no other."""

from freeze_proxy.daemon.settings import Failure, Settings
from freeze_proxy.daemon.supervisor import Line, supervise

__all__ = ["Failure", "Settings", "run"]


def run(settings: Settings) -> int:
    """Supervise a daemon until it ends; returns the exit code."""

    def serve(line: Line) -> int:
        # Only this process carries what the daemon is made of; the supervisor stays small.
        import sys

        from freeze_proxy import logs

        logs.set_up(settings.log_level)
        try:
            from freeze_proxy.daemon import app

            return app.serve(settings, line)
        except Failure as failure:
            print(f"freeze-proxy: {failure}", file=sys.stderr)
        except ModuleNotFoundError as error:
            print(f"freeze-proxy: The daemon needs {error.name}: pip install 'freeze-proxy[cluster]'.", file=sys.stderr)
        return 125

    return supervise(serve, settings.state_dir, settings.log_level)
