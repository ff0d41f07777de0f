"${lartpc_ds[@]}" "$@" &
train=$!

# A request makes train save after the current step and exit with 75. It is passed on as SIGUSR1, which counts as one
# request however often it comes, so it does no harm if train has had a signal itself.
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

# a signal ends the wait and not train, so wait again until no signal came in between
while
    seen=$stops
    wait "$train"
    code=$?
    [ "$seen" -ne "$stops" ]
do
    :
done
