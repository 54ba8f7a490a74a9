"""runc for a node that has cgroups of both versions: some of its pods are where all are on a node with cgroup2 alone.

What a kubelet needs of cgroups is in v1 on such a machine, and runc has a pod's containers there, too: in cgroup2 all
of them stand in the root, and nobody can look at the packets of one. A container of a pod that is chosen is in cgroup2
instead, which is all that its runc sees: it is placed there, frozen there, and seen to be frozen there. For CPU and
memory it is charged in v1 beside the others, as it is on machines whose systemd makes cgroups in both.
"""

import shutil
from pathlib import Path

CHOSEN = "ambient-"
"""What the names of pods begin with that are chosen: the wrapper knows no more of them."""

_SCRIPT = """#!/bin/sh
# In these folders: which containers are chosen, one file each.
chosen={chosen}
own={own}
for word; do
    [ "$before" = --bundle ] && bundle=$word
    [ -e "$chosen/$word" ] && is_chosen=yes
    before=$word
done
if [ -n "$bundle" ] && grep --quiet '"io.kubernetes.cri.sandbox-name":"{prefix}' "$bundle/config.json"; then
    is_chosen=yes
    touch "$chosen/$word" # its id is the last word
    # The root that runc sees is the cgroup of the tests. It has no controller that could hold anybody to a limit.
    place=$(sed --quiet 's/.*"cgroupsPath":"\\([^"]*\\)".*/\\1/p' "$bundle/config.json")
    sed --in-place "s|\\"cgroupsPath\\":\\"$own|\\"cgroupsPath\\":\\"|"'
        s/"cpu":{{[^}}]*}}/"cpu":{{}}/; s/"memory":{{[^}}]*}}/"memory":{{}}/
        s/"devices":\\[{{"allow"[^]]*\\]/"devices":[]/
        ' "$bundle/config.json"
    for controller in cpu cpuacct memory; do
        mkdir --parents "/sys/fs/cgroup/$controller$place"
        echo $$ >"/sys/fs/cgroup/$controller$place/cgroup.procs"
    done
fi
[ -n "$is_chosen" ] || exec {runc} "$@"
echo $$ >"{cgroup2}$own/cgroup.procs"
exec unshare --mount --propagation slave --cgroup sh -c '
    umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec {runc} "$@"' sh "$@"
"""


def write(script: Path, cgroup: str, cgroup2: Path) -> None:
    """Write what containerd is to start as runc.

    ``cgroup``: the name of the cgroup below which all of the node's are, ``cgroup2`` where cgroup2 is mounted.
    """
    runc = shutil.which("runc")
    assert runc, "runc is not installed"
    chosen = script.with_suffix(".chosen")
    chosen.mkdir(exist_ok=True)
    script.write_text(_SCRIPT.format(chosen=chosen, own=f"/{cgroup}", prefix=CHOSEN, runc=runc, cgroup2=cgroup2))
    script.chmod(0o755)
