"""The command line: one command, subcommands that import their part only when they run."""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from freeze_proxy import __version__, settings
from freeze_proxy.gate import MODES, Settings


class _Parsed(click.ParamType[Any]):
    """An option whose text is read by one of the functions of ``settings``."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the text; its ``ValueError`` becomes click's."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_DURATION = _Parsed("duration", settings.duration)
_POSITIVE = _Parsed("duration", settings.positive_duration)
_ADDRESS = _Parsed("addr:port", settings.address)
_KINDS = ("auto", "cgroup2", "cgroup1", "process")
_FORMATS = ("auto", "json", "text", "none")


def _path(text: str) -> str:
    if not text.startswith("/") or any(character <= " " for character in text):
        raise ValueError(f"{text!r} is not a path: write one that begins with /, such as /healthz.")
    return text


def _common(*kinds: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of both ``run`` and ``attach``, which can freeze in these ways."""
    options = (
        click.option("--listen", type=_ADDRESS,
                     help="Where clients come in to be relayed; 127.0.0.1:8080 where nothing else is said."),
        click.option("--grace", type=_DURATION, default="100ms", show_default=True,
                     help="Quiet time before a freeze."),
        click.option("--mode", type=click.Choice(MODES), default="freeze", show_default=True,
                     help="throttle: leave it a hundredth of a core instead; dry-run: only say what would be done; "
                          "off: only relay."),
        click.option("--thaw-timeout", type=_POSITIVE, default="5s", show_default=True,
                     help="How long a request waits for a thaw before it is answered 503."),
        click.option("--breathe", type=_Parsed("every/span", settings.breathe), default="off", show_default=True,
                     help="While frozen, let it run now and then: 30s/50ms is every 30 s for 50 ms."),
        click.option("--idle-stream", type=_Parsed("duration", settings.idle_stream), default="off",
                     show_default=True,
                     help="Count a WebSocket or a stream that has been silent for so long as idle."),
        click.option("--ready-path", type=_Parsed("path", _path),
                     help="The server is ready when this path answers 2xx or 3xx; by default when it listens."),
        click.option("--start-timeout", type=_POSITIVE, default="60s", show_default=True,
                     help="How long to wait until it is ready."),
        click.option("--freezer", type=click.Choice(kinds), default="auto", show_default=True,
                     help="How to freeze; process is SIGSTOP to the whole process tree."),
        click.option("--wake-on", type=click.Choice(("port", "any")), default="port", show_default=True,
                     help="Where it is ambient: what comes to its port wakes the server, or to any of its sockets."),
        click.option("--report", type=click.Path(dir_okay=False, writable=True), metavar="FILE.json",
                     help="Write the numbers at the end, with the raw histogram."),
        click.option("--log-format", type=click.Choice(_FORMATS), default="auto", show_default=True,
                     help="auto: a status line on a terminal, JSON lines on stderr elsewhere."),
    )  # fmt: skip

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _options(given: dict[str, Any]) -> Any:
    if given["way"] == "ambient" and given["listen"] is not None:
        raise click.UsageError("--listen is for the relay: with --ambient clients go straight to the server's port.")
    from freeze_proxy.local import Options
    from freeze_proxy.local.status import reporter

    return Options(
        listen=given["listen"],
        settings=Settings(given["grace"], given["mode"], given["thaw_timeout"], given["breathe"], given["idle_stream"]),
        freezer=given["freezer"],
        ready_path=given["ready_path"],
        start_timeout=given["start_timeout"],
        report=given["report"],
        reporter=reporter(given["log_format"]),
        print_table=given["log_format"] in ("auto", "text"),
        way=given["way"],
        any_socket=given["wake_on"] == "any",
    )


def _exit_with(work: Callable[[], int]) -> None:
    from freeze_proxy.local import Failure
    from freeze_proxy.local.options import CANNOT_WORK
    from freeze_proxy.local.status import LAST_PATIENCE, Output

    try:
        code, sentence = work(), None
    except Failure as failure:
        code, sentence = failure.code, str(failure)
    except OSError as error:
        # Out of descriptors, memory or processes, say.
        code, sentence = CANNOT_WORK, f"It cannot go on: {error}."
    if sentence is not None:
        Output().write(f"freeze-proxy: {sentence}\n", LAST_PATIENCE)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="freeze-proxy")
def main() -> None:
    """Keep servers warm without letting them burn CPU between requests."""


@main.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Start a server, and freeze it while no request is in flight.",
)
@_common(*_KINDS)
@click.option(
    "--ambient/--relay",
    "ambient",
    default=None,
    help="Look at the server's packets from the side, or relay them. By default ambient where that is possible and no "
    "--listen is given.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Where the server will listen; by default 8080 where it is ambient, behind a relay a free port.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: Sequence[str], port: int | None, ambient: bool | None, **given: Any) -> None:
    """Start COMMAND, a server that listens on $PORT, and freeze it while no request is in flight.

    Exit codes: COMMAND's own (128 + n for signal n) · 2 wrong usage · 124 it was not ready in time · 125 freeze-proxy
    could not do its work, and a sentence says why · 126 COMMAND cannot be run · 127 there is no such command.
    """
    from freeze_proxy import local

    options = _options(given | {"way": {None: "auto", True: "ambient", False: "relay"}[ambient]})
    _exit_with(lambda: local.run(options, command, port))


@main.command()
@_common(*_KINDS, "docker", "containerd")
@click.option("--ambient", is_flag=True, help="Relay nothing: look at the packets that clients send to the target.")
@click.option("--pid", type=click.IntRange(2), help="The server's process.")
@click.option("--cgroup", "path", type=click.Path(file_okay=False), help="The server's cgroup.")
@click.option("--docker", metavar="NAME", help="The server's container, by the name or id that Docker has for it.")
@click.option("--containerd", metavar="ID", help="The server's container, by its id or the beginning of it.")
@click.option("--target", type=_ADDRESS, required=True, help="Where the server listens.")
@click.option(
    "--docker-socket",
    metavar="PATH",
    default="/var/run/docker.sock",
    envvar="DOCKER_HOST",
    show_default=True,
    show_envvar=True,
    help="Where Docker listens.",
)
@click.option(
    "--containerd-socket",
    metavar="PATH",
    default="/run/containerd/containerd.sock",
    envvar="CONTAINERD_ADDRESS",
    show_default=True,
    show_envvar=True,
    help="Where containerd listens.",
)
@click.option(
    "--containerd-namespace",
    metavar="NAME",
    envvar="CONTAINERD_NAMESPACE",
    show_envvar=True,
    help="Where the container is: k8s.io, moby, default, …; by default it is looked for in all.",
)
def attach(
    pid: int | None,
    path: str | None,
    docker: str | None,
    containerd: str | None,
    target: tuple[str, int],
    docker_socket: str,
    containerd_socket: str,
    containerd_namespace: str | None,
    ambient: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Freeze a server that already runs while no request is in flight. On leaving, it is thawed and left as found.

    Exit codes: 0 after a signal, or when the server has ended · 2 wrong usage · 124 it was not ready in time ·
    125 freeze-proxy could not do its work, and a sentence says why.
    """
    from freeze_proxy import local

    which: list[int | str | local.ContainerdId | local.DockerName] = [each for each in (pid, path) if each is not None]
    try:
        if docker is not None:
            which.append(local.DockerName(docker, settings.unix_socket(docker_socket)))
        if containerd is not None:
            which.append(local.ContainerdId(containerd, containerd_namespace, settings.unix_socket(containerd_socket)))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if len(which) != 1 or "" in (docker, containerd):
        raise click.UsageError("Say which server it is with one of --pid, --cgroup, --docker and --containerd.")
    runtimes = {"docker": docker, "containerd": containerd}
    if runtimes.get(given["freezer"], "") is None:
        raise click.UsageError(f"--freezer {given['freezer']} goes with --{given['freezer']}.")
    options = _options(given | {"way": "ambient" if ambient else "relay"})
    _exit_with(lambda: local.attach(options, target, which[0]))


def _from_file(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    """Takes what a file says as defaults: the command line and the environment go before it."""
    if path is None:
        return
    import tomllib

    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # TOML, or the UTF-8 that it must be
        raise click.BadParameter(f"{path} is not TOML: {error}.") from error
    options = {option.lstrip("-"): param for param in ctx.command.params for option in param.opts}
    unknown = sorted(values.keys() - options.keys())
    if unknown:
        raise click.BadParameter(f"{path} has settings that do not exist: {', '.join(unknown)}; --help lists them all.")
    ctx.default_map = {
        str(options[name].name): [str(each) for each in (value if isinstance(value, list) else [value])]
        if options[name].multiple
        else str(value)
        for name, value in values.items()
    }


def _runtime_socket(text: str) -> str:
    return text if text == "auto" else settings.unix_socket(text)


def _setting(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, show_default=True, show_envvar=True, **attributes)


_config_file = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_from_file,
    show_envvar=True,
    metavar="FILE.toml",
    help="Settings by the names of these options, without the dashes.",
)


def _daemon_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``daemon``, and of ``doctor``, which looks at what they say."""
    for option in reversed(
        (
            _config_file,
            _setting(
                "--listen",
                type=_ADDRESS,
                default="127.0.0.1:9696",
                help="Where pods reach it: on a node, the node's address.",
            ),
            _setting(
                "--health-listen",
                type=_ADDRESS,
                default="127.0.0.1:9697",
                help="Where /healthz, /readyz and /metrics are.",
            ),
            _setting(
                "--node-name",
                metavar="NAME",
                help="This node's name in the cluster; tokens of pods on other nodes are refused. By default none are.",
            ),
            _setting(
                "--identity",
                type=click.Choice(("tokenreview", "jwks")),
                default="tokenreview",
                help="tokenreview: ask the API server about each token; jwks: check it with the cluster's keys.",
            ),
            _setting("--audience", metavar="NAME", default="freeze", help="For whom tokens must have been issued."),
            _setting(
                "--hook-audience",
                metavar="NAME",
                default="concurrency-state-hook",
                help="The same for POST /, which queue-proxy of Knative 0.26 to 1.9 sends.",
            ),
            _setting(
                "--kubeconfig",
                type=click.Path(dir_okay=False),
                help="How to reach the API server; by default as a pod does.",
            ),
            _setting("--context", metavar="NAME", help="The kubeconfig's context, if not the current one."),
            _setting(
                "--issuer",
                metavar="URL",
                help="With jwks: the issuer of tokens, if not the one that the API server names.",
            ),
            _setting(
                "--runtime-socket",
                type=_Parsed("path", _runtime_socket),
                default="auto",
                help="The container runtime's CRI socket; auto looks at the usual places.",
            ),
            _setting(
                "--freezer",
                type=click.Choice(("auto", "cgroup", "containerd", "docker", "crio")),
                default="auto",
                help="auto: by the container's own cgroup where it can be written, else by asking the runtime.",
            ),
            _setting(
                "--exclude",
                multiple=True,
                metavar="NAME",
                help="Containers to be frozen only when asked for by name; by default well-known injected sidecars.",
            ),
            _setting(
                "--state-dir",
                type=click.Path(file_okay=False),
                default="/run/freeze-proxy",
                help="Where it is written down what is frozen; on a file system in memory.",
            ),
            _setting(
                "--freeze-timeout",
                type=_POSITIVE,
                default="2s",
                help="Within this, all of a pod must stand still, or it is thawed again.",
            ),
            _setting(
                "--claim-timeout",
                type=_POSITIVE,
                default="3s",
                help="After a start: for how long pods may claim what an earlier daemon has frozen.",
            ),
            _setting(
                "--ambient/--no-ambient",
                default=False,
                help="Freeze also the node's pods that ask for it without a sidecar; needs --node-name.",
            ),
            _setting(
                "--config-dir",
                type=click.Path(file_okay=False),
                help="With --ambient: where the ConfigMap with the cluster's defaults is mounted.",
            ),
            _setting(
                "--log-level",
                type=click.Choice(("debug", "info", "warning", "error")),
                default="info",
                help="From which level on lines are written; debug has every freeze and thaw.",
            ),
        )
    ):
        command = option(command)
    return command


@main.command(short_help="Stand in a pod between queue-proxy and the user container.")
def sidecar() -> None:
    """Relay requests to the user container, and have the node's daemon freeze it while none is in flight.

    It takes no options: FREEZE_PROXY_TARGET, FREEZE_PROXY_DAEMON and the other variables in docs/sidecar.md say all.

    Exit codes: 0 when it has drained · 2 a variable is wrong, and a sentence says which · 125 it cannot listen.
    """
    # In an interpreter of its own, with nothing in it but what a sidecar needs: memory counts in every pod.
    root = str(pathlib.Path(__file__).parent.parent)
    start = f"import sys; sys.path.insert(0, {root!r}); from freeze_proxy.sidecar.app import main; main()"
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", start])  # noqa: S606 - no shell is wanted


_DAEMON: dict[str, Any] = {"auto_envvar_prefix": "FREEZE_PROXY", "max_content_width": 110}


def _given_settings(exclude: tuple[str, ...], given: dict[str, Any]) -> Any:
    from freeze_proxy.daemon.settings import Settings

    if exclude:
        given["exclude"] = exclude
    return Settings(**given)


@main.command(context_settings=_DAEMON)
@_daemon_settings
def daemon(exclude: tuple[str, ...], **given: Any) -> None:
    """Freeze the containers of the pod that asks, and of no other. Runs once on every node of a cluster.

    Exit codes: 0 after SIGTERM or SIGINT, everything thawed · 2 wrong usage · 125 it could not do its work, and a
    sentence says why · 128 + n if the daemon was ended by signal n; what it had frozen has been thawed then.
    """
    from freeze_proxy import daemon

    sys.exit(daemon.run(_given_settings(exclude, given)))


@main.command(context_settings=_DAEMON, short_help="Check whether a daemon will work on this node.")
@_daemon_settings
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(exclude: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Check this node, and print whether a daemon with these options will work, and what to do if not.

    Nothing is changed. Freezing is tried on a process of its own, in a cgroup that is removed again. In a cluster, run
    it where the daemon runs: in its container.

    Exit codes: 0 all that is needed works · 1 something that is needed does not · 2 wrong usage.
    """
    try:
        from freeze_proxy.daemon import doctor
    except ModuleNotFoundError as error:
        raise click.ClickException(f"The doctor needs {error.name}: pip install 'freeze-proxy[cluster]'.") from error

    sys.exit(doctor.run(_given_settings(exclude, given), as_json))


@main.command(context_settings=_DAEMON, short_help="Put the sidecar into pods as they are created.")
@_config_file
@_setting("--image", required=True, metavar="NAME", help="The sidecar's image, as pods are to name it.")
@_setting("--listen", type=_ADDRESS, default="0.0.0.0:8443", help="Where the API server reaches it, by TLS.")
@_setting("--health-listen", type=_ADDRESS, default="0.0.0.0:9697", help="Where /healthz, /readyz and /metrics are.")
@_setting("--namespace", metavar="NAME", default="freeze-proxy", help="Where its Service and its Secret are.")
@_setting("--service", metavar="NAME", default="freeze-proxy-webhook", help="Its Service: the certificate's name.")
@_setting(
    "--config-dir",
    type=click.Path(file_okay=False),
    help="Where the ConfigMap with the cluster's defaults is mounted; it is read again when it changes.",
)
@_setting(
    "--cert-dir",
    type=click.Path(file_okay=False),
    help="Serve tls.crt and tls.key from there, as cert-manager keeps them, and leave the configuration's caBundle "
    "alone. By default the webhook makes certificates itself.",
)
@_setting(
    "--certificate-lifetime",
    type=_POSITIVE,
    default="2160h",
    help="Of the certificates that it makes; they are renewed when a third of it is left.",
)
@_setting("--check-every", type=_POSITIVE, default="1m", help="How often certificate and caBundle are looked at.")
@_setting("--settle", type=_DURATION, default="5s", help="From the API server's trust in a new certificate to its use.")
@_setting("--linger", type=_DURATION, default="5s", help="After SIGTERM: for how long reviews are still taken.")
@_setting(
    "--request-timeout",
    type=_POSITIVE,
    default="10s",
    help="How long the head of a request, and then its body, may take to come; who is slower is cut off.",
)
@_setting(
    "--native-sidecars",
    type=click.Choice(("auto", "always", "never")),
    default="auto",
    help="Whether the sidecar is a restartable init container. auto: where the API server is of 1.29 or later, and "
    "outside Knative of 1.33, from which on Services find its port; say never while there are nodes older than that.",
)
@_setting(
    "--sandboxed",
    multiple=True,
    metavar="NAME",
    help="A runtime class whose processes no node can freeze, besides those that begin with gvisor, runsc or kata; may "
    "be given several times.",
)
@_setting("--daemon-port", type=click.IntRange(1, 65535), default=9696, help="The daemon's port on every node.")
@_setting(
    "--kubeconfig", type=click.Path(dir_okay=False), help="How to reach the API server; by default as a pod does."
)
@_setting("--context", metavar="NAME", help="The kubeconfig's context, if not the current one.")
@_setting(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    help="From which level on lines are written; debug has every pod that is left alone.",
)
def webhook(**given: Any) -> None:
    """Review pods for the API server, and put the sidecar into those of Knative's revisions and those that ask for it.

    Exit codes: 0 after SIGTERM or SIGINT · 2 wrong usage · 125 it could not do its work, and a sentence says why.
    """
    from freeze_proxy import webhook

    sys.exit(webhook.run(webhook.Settings(**given)))


@main.command(short_help="Tell what is left of freeze-proxy in a cluster.")
@click.option("--check", is_flag=True, help="Look and tell; nothing is changed. There is no other way.")
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False),
    help="How to reach the API server; by default $KUBECONFIG or ~/.kube/config, and in a pod as pods do.",
)
@click.option("--context", metavar="NAME", help="The kubeconfig's context, if not the current one.")
@click.option("--namespace", metavar="NAME", default="freeze-proxy", show_default=True, help="Where it is installed.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def uninstall(check: bool, kubeconfig: str | None, context: str | None, namespace: str, as_json: bool) -> None:
    """Tell what there is of freeze-proxy in a cluster, what it still does, and by which commands it goes.

    It needs the right to get what the manifests have, and to list pods in all namespaces.

    Exit codes: 0 nothing is left · 1 something is · 2 wrong usage · 125 the cluster could not be asked.
    """
    if not check:
        raise click.UsageError("uninstall removes nothing: with --check it tells what is there, and how to remove it.")
    from freeze_proxy import webhook

    sys.exit(webhook.check_uninstall(kubeconfig or _own_kubeconfig(), context, namespace, as_json))


def _own_kubeconfig() -> str | None:
    """Where kubectl would look; nothing where there is no such file."""
    path = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or os.path.expanduser("~/.kube/config")
    return path if os.path.exists(path) else None
