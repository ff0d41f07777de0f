"${lartpc_ds[@]}" "$@" &
train=$!

# A request makes train save after the step at hand and exit with 75. It is passed on as SIGUSR1, which is one request
# however often it comes: that train has had a signal of its own too does no harm.
stops=0
asked=
ask_to_stop() {
    asked=$1
    stops=$((stops + 1))
    echo "$(date): SIG$asked; asking train to save and stop"
    kill -USR1 "$train" 2>/dev/null
}
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM INT

# a signal ends the wait, not train: wait again, until none came in between
while
    seen=$stops
    wait "$train"
    code=$?
    [ "$seen" -ne "$stops" ]
do
    :
done
