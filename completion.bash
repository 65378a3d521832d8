# Tab completes the flags of this repository's commands behind python3:   source completion.bash
# A command is asked for its flags when it is first completed, which takes seconds; from then on it is quick.

_nrf_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

_nrf_complete() {
    local python=${COMP_WORDS[0]} script=${COMP_WORDS[1]} name=${COMP_WORDS[1]##*/}
    local function=_shtab_${name//[^[:alnum:]]/_}
    COMPREPLY=()
    [[ $COMP_CWORD -gt 1 && $script -ef $_nrf_folder/$name && $name == *.py ]] || return 0
    if ! declare -F "$function" >/dev/null; then
        eval "$("$python" "$script" --print-completion bash 2>/dev/null | grep -v '^complete ')"
    fi
    if declare -F "$function" >/dev/null; then
        COMP_WORDS=("${COMP_WORDS[@]:1}")
        COMP_CWORD=$((COMP_CWORD - 1))
        "$function"
    fi
}

complete -o bashdefault -o default -F _nrf_complete python3 python .venv/bin/python
