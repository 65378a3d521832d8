# Tab completes nrf's commands and their flags:   source completion.bash
#     nrf evaluate --d<TAB>     python3 -m nrf evaluate --d<TAB>     python3 learn_shapes.py DATA LOGS --n<TAB>
# A command is asked for its flags when it is first completed, which takes seconds; from then on it is quick.

_nrf_complete() {
    local words=("${COMP_WORDS[@]}") ask first=1
    COMPREPLY=()
    case "${words[0]##*/} ${words[1]:-} ${words[2]:-}" in
        nrf\ *) ask=("${words[0]}" "${words[1]}") ;;
        python*\ -m\ nrf) ask=("${words[@]:0:4}") first=3 ;;
        python*\ *learn_shapes.py\ *) ask=("${words[@]:0:2}") ;;
        *) return 0 ;;
    esac
    if [ "$COMP_CWORD" -eq "$first" ]; then
        [[ ${ask[-1]} == *.py ]] ||
            mapfile -t COMPREPLY < <(compgen -W "$("${ask[@]:0:first}" --help 2>/dev/null | awk '/^  /{print $1}')" -- "${words[first]}")
        return 0
    fi
    [ "$COMP_CWORD" -gt "$first" ] || return 0
    local name=nrf_${ask[-1]}
    [[ ${ask[-1]} == *.py ]] && name=learn_shapes_py
    [[ ${ask[-1]} == learn_shapes ]] && name=learn_shapes_py
    if ! declare -F "_shtab_$name" >/dev/null; then
        eval "$("${ask[@]}" --print-completion bash 2>/dev/null | grep -v '^complete ')"
    fi
    if declare -F "_shtab_$name" >/dev/null; then
        COMP_WORDS=("${words[@]:first}")
        COMP_CWORD=$((COMP_CWORD - first))
        "_shtab_$name"
    fi
}

complete -o bashdefault -o default -F _nrf_complete nrf python3 python .venv/bin/python .venv/bin/nrf
