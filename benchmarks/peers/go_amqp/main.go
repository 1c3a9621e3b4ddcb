// go-amqp over coder/websocket, used as its documentation shows: Sender.Send, or SendWithReceipt and Wait; Receive and
// AcceptMessage.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"regexp"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/coder/websocket"
)

type job struct {
	URL         string `json:"url"`
	Address     string `json:"address"`
	Work        string `json:"work"`
	BodyFile    string `json:"body_file"`
	Rich        bool   `json:"rich"`
	Messages    int    `json:"messages"`
	WarmUp      int    `json:"warm_up"`
	Window      int    `json:"window"`
	Tasks       int    `json:"tasks"`
	Connections int    `json:"connections"`
}

var (
	theJob job
	body   []byte
	ctx    = context.Background()
)

func main() {
	check(json.Unmarshal([]byte(os.Args[1]), &theJob))
	var err error
	body, err = os.ReadFile(theJob.BodyFile)
	check(err)
	works := map[string]func(){
		"send":        send,
		"tasks":       tasks,
		"alone":       alone,
		"receive":     receive,
		"connections": connections,
		"connect":     connectAgain,
	}
	work, known := works[theJob.Work]
	if !known {
		log.Fatalf("no such work: %s", theJob.Work)
	}
	work()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func makeMessage(number int) *amqp.Message {
	message := amqp.NewMessage(body)
	if theJob.Rich {
		contentType := "application/json"
		message.Properties = &amqp.MessageProperties{
			MessageID:   fmt.Sprintf("order-%012d", number),
			ContentType: &contentType,
		}
		message.ApplicationProperties = map[string]any{
			"tenant": "acme-eu", "attempt": int64(number & 127), "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736",
		}
	}
	return message
}

func read(message *amqp.Message) {
	right := len(message.GetData()) == len(body)
	if theJob.Rich {
		right = right && message.Properties.MessageID != nil && message.ApplicationProperties["tenant"] == "acme-eu"
	}
	if !right {
		log.Fatal("not what was sent")
	}
}

func dial() *amqp.Conn {
	socket, _, err := websocket.Dial(ctx, theJob.URL, &websocket.DialOptions{Subprotocols: []string{"amqp"}})
	check(err)
	conn, err := amqp.NewConn(ctx, websocket.NetConn(ctx, socket, websocket.MessageBinary), &amqp.ConnOptions{
		SASLType: amqp.SASLTypeAnonymous(),
	})
	check(err)
	return conn
}

func sender(conn *amqp.Conn, address string) *amqp.Sender {
	session, err := conn.NewSession(ctx, nil)
	check(err)
	sender, err := session.NewSender(ctx, address, nil)
	check(err)
	return sender
}

func accepted(receipt amqp.SendReceipt) {
	state, err := receipt.Wait(ctx)
	check(err)
	if _, right := state.(*amqp.StateAccepted); !right {
		log.Fatalf("not accepted: %v", state)
	}
}

func pipeline(sender *amqp.Sender, count int) {
	receipts := make(chan amqp.SendReceipt, theJob.Window)
	done := make(chan struct{})
	go func() {
		for receipt := range receipts {
			accepted(receipt)
		}
		close(done)
	}()
	for number := range count {
		receipt, err := sender.SendWithReceipt(ctx, makeMessage(number), nil)
		check(err)
		receipts <- receipt
	}
	close(receipts)
	<-done
}

func send() {
	sender := sender(dial(), theJob.Address)
	pipeline(sender, theJob.WarmUp)
	begin()
	pipeline(sender, theJob.Messages)
	report(nil)
}

func fromTasks(sender *amqp.Sender, count int) {
	var group sync.WaitGroup
	for first := range theJob.Tasks {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := first; number < count; number += theJob.Tasks {
				check(sender.Send(ctx, makeMessage(number), nil))
			}
		}()
	}
	group.Wait()
}

func tasks() {
	sender := sender(dial(), theJob.Address)
	fromTasks(sender, theJob.WarmUp)
	begin()
	fromTasks(sender, theJob.Messages)
	report(nil)
}

func alone() {
	sender := sender(dial(), theJob.Address)
	seconds := []float64{}
	for number := -theJob.WarmUp; number < theJob.Messages; number++ {
		if number == 0 {
			begin()
		}
		started := time.Now()
		check(sender.Send(ctx, makeMessage(0), nil))
		if number >= 0 {
			seconds = append(seconds, time.Since(started).Seconds())
		}
	}
	report(seconds)
}

func receive() {
	session, err := dial().NewSession(ctx, nil)
	check(err)
	receiver, err := session.NewReceiver(ctx, theJob.Address, &amqp.ReceiverOptions{Credit: int32(theJob.Window)})
	check(err)
	for number := -theJob.WarmUp; number < theJob.Messages; number++ {
		if number == 0 {
			begin()
		}
		message, err := receiver.Receive(ctx, nil)
		check(err)
		read(message)
		check(receiver.AcceptMessage(ctx, message))
	}
	report(nil)
	time.Sleep(200 * time.Millisecond) // the last accepts go out
}

func connections() {
	senders := []*amqp.Sender{}
	for number := range theJob.Connections {
		senders = append(senders, sender(dial(), fmt.Sprintf("%s-%d", theJob.Address, number)))
	}
	everyone := func(count int) {
		var group sync.WaitGroup
		for _, sender := range senders {
			group.Add(1)
			go func() {
				defer group.Done()
				pipeline(sender, count/len(senders))
			}()
		}
		group.Wait()
	}
	everyone(theJob.WarmUp)
	begin()
	everyone(theJob.Messages)
	report(nil)
}

func connectAgain() {
	seconds := []float64{}
	for number := -theJob.WarmUp; number < theJob.Messages; number++ {
		if number == 0 {
			begin()
		}
		started := time.Now()
		conn := dial()
		check(sender(conn, theJob.Address).Send(ctx, makeMessage(0), nil))
		if number >= 0 {
			seconds = append(seconds, time.Since(started).Seconds())
		}
		conn.Close()
	}
	report(seconds)
}

var startCPU, startWall float64

func now() (cpu, wall float64) {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	cpu = float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
	return cpu, float64(time.Now().UnixNano()) / 1e9
}

func begin() {
	startCPU, startWall = now()
}

func report(seconds []float64) {
	cpu, wall := now()
	figures := map[string]any{
		"messages": theJob.Messages, "cpu": cpu - startCPU, "wall": wall - startWall, "peak_memory": peakMemory(),
	}
	if len(seconds) > 0 {
		sort.Float64s(seconds)
		figures["p50"], figures["p99"] = seconds[len(seconds)/2], seconds[len(seconds)*99/100]
	}
	check(json.NewEncoder(os.Stdout).Encode(figures))
}

func peakMemory() int {
	status, err := os.ReadFile("/proc/self/status")
	if match := regexp.MustCompile(`VmHWM:\s+(\d+)`).FindSubmatch(status); err == nil && match != nil {
		kibibytes, _ := strconv.Atoi(string(match[1]))
		return kibibytes * 1024
	}
	return 0
}
