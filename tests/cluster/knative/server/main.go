// A server as users write them: HTTP/1.1, HTTP/2 without TLS, gRPC, WebSocket and events on one port, and a line on
// standard output every 100 ms, by which one can tell whether it ran.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const tick = 100 * time.Millisecond

var (
	running, most atomic.Int64
	upgrader      = websocket.Upgrader{}
)

func seconds(request *http.Request, name string, otherwise float64) time.Duration {
	value, err := strconv.ParseFloat(request.URL.Query().Get(name), 64)
	if err != nil {
		value = otherwise
	}
	return time.Duration(value * float64(time.Second))
}

// counted keeps the highest number of requests at a time, which /most tells.
func counted(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		now := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		handler.ServeHTTP(writer, request)
	})
}

func hello(writer http.ResponseWriter, request *http.Request) {
	time.Sleep(seconds(request, "seconds", 0))
	host, _ := os.Hostname()
	fmt.Fprintf(writer, "hello from %s by %s\n", host, request.Proto)
}

func echo(writer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	writer.Header().Set("Trailer", "X-Length")
	writer.Write(body)
	writer.Header().Set("X-Length", strconv.Itoa(len(body)))
}

func events(writer http.ResponseWriter, request *http.Request) {
	writer.Header().Set("Content-Type", "text/event-stream")
	for number := range 10 {
		fmt.Fprintf(writer, "data: %d\n\n", number)
		writer.(http.Flusher).Flush()
		time.Sleep(seconds(request, "every", 0.3))
	}
}

func talk(writer http.ResponseWriter, request *http.Request) {
	connection, err := upgrader.Upgrade(writer, request, nil)
	if err != nil {
		return
	}
	defer connection.Close()
	for {
		kind, message, err := connection.ReadMessage()
		if err != nil || connection.WriteMessage(kind, message) != nil {
			return
		}
	}
}

func main() {
	if len(os.Args) > 1 { // an exec probe
		return
	}
	calls := grpc.NewServer()
	healthpb.RegisterHealthServer(calls, health.NewServer())
	paths := http.NewServeMux()
	paths.HandleFunc("/", hello)
	paths.HandleFunc("/echo", echo)
	paths.HandleFunc("/events", events)
	paths.HandleFunc("/talk", talk)
	paths.HandleFunc("/most", func(writer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(writer, most.Load()) })
	handler := http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		if strings.HasPrefix(request.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(writer, request)
		} else {
			paths.ServeHTTP(writer, request)
		}
	})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: ":" + os.Getenv("PORT"), Handler: counted(handler), Protocols: protocols}

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		for range time.Tick(tick) {
			fmt.Printf("tick at %d\n", time.Now().UnixMilli())
		}
	}()
	done := make(chan struct{})
	go func() {
		<-ended
		server.Shutdown(context.Background())
		close(done)
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-done
}
