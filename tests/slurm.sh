#!/usr/bin/env bash
# Starts or stops a SLURM of two nodes, both this machine, on its loopback address:  tests/slurm.sh start FOLDER | stop FOLDER
# It needs root and the packages slurm-wlm and munge.  State and logs lie in FOLDER, the ports are 17817 to 17819;
# /etc/slurm/slurm.conf points there unless there is one already.
set -euo pipefail
folder=$(mkdir -p "$2" && cd "$2" && pwd)
host=$(hostname -s)
port=${SLURM_TEST_PORT:-17817}

start() {
    for program in slurmctld slurmd munged; do
        command -v $program >/dev/null || { echo "$program is missing: apt-get install slurm-wlm munge" >&2; exit 3; }
    done
    [ "$(id -u)" = 0 ] || { echo "starting SLURM needs root" >&2; exit 3; }
    mkdir -p "$folder/state" "$folder"/spool-n{1,2} /run/munge /etc/slurm
    if ! munge -n >/dev/null 2>&1; then
        chown -R munge: /run/munge /var/log/munge /etc/munge
        runuser -u munge -- /usr/sbin/munged
    fi
    [ -e /etc/slurm/slurm.conf ] || ln -s "$folder/slurm.conf" /etc/slurm/slurm.conf # srun and slurmstepd look there
    cat >"$folder/slurm.conf" <<CONF
ClusterName=nrf
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
SlurmctldPort=$port
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=4 RealMemory=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0 PriorityTier=2 State=UP
PartitionName=spare Nodes=ALL MaxTime=INFINITE PriorityTier=1 State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 30); do
        [ "$(sinfo -h -p debug -t idle -o %D 2>/dev/null)" = 2 ] && return
        sleep 1
    done
    tail -n 20 "$folder"/*.log >&2
    exit 1
}

stop() {
    export SLURM_CONF=$folder/slurm.conf
    scancel --full --signal=KILL --state=RUNNING --user="$(id -un)" 2>/dev/null || true
    scancel --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 50); do # what lived on would report to the next SLURM on these ports
        [ -n "$(squeue -h 2>/dev/null)" ] || break
        sleep 0.2
    done
    for file in "$folder"/slurm*.pid; do
        [ ! -e "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
    done
    [ "$(readlink /etc/slurm/slurm.conf)" != "$folder/slurm.conf" ] || rm /etc/slurm/slurm.conf
}

case $1 in
    start | stop) "$1" ;;
    *) echo "usage: $0 start|stop FOLDER" >&2; exit 2 ;;
esac
