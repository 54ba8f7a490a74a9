// A reverse proxy as a Go programmer would write it for this job: net/http/httputil's ReverseProxy with its default
// Transport, behind a gate. Every request reports its beginning and its end over a channel to one goroutine, which
// counts what is in flight and would freeze and thaw. It stands in for the Go proof of concept in the benchmark.
package main

import (
	"flag"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

type gate struct {
	begin chan chan struct{} // a request begins, and waits for its channel to be closed
	end   chan struct{}
}

func (g gate) run(grace time.Duration) {
	inFlight := 0
	frozen := false
	quiet := time.NewTimer(grace)
	for {
		select {
		case pass := <-g.begin:
			inFlight++
			if inFlight == 1 {
				quiet.Stop()
				frozen = false // the thaw would happen here
			}
			close(pass)
		case <-g.end:
			inFlight--
			if inFlight == 0 {
				quiet.Reset(grace)
			}
		case <-quiet.C:
			if inFlight == 0 && !frozen {
				frozen = true // the freeze would happen here
			}
		}
	}
}

func (g gate) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pass := make(chan struct{})
		g.begin <- pass
		<-pass
		defer func() { g.end <- struct{}{} }()
		next.ServeHTTP(w, r)
	})
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address to listen on")
	target := flag.String("target", "127.0.0.1:8081", "address of the server")
	idle := flag.Int("idle", 0, "idle connections to keep to the server (0: the default of net/http, which is 2)")
	grace := flag.Duration("grace", 100*time.Millisecond, "quiet time before a freeze")
	flag.Parse()

	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: *target})
	proxy.ErrorLog = log.New(io.Discard, "", 0) // clients that leave are the load generator's, at the end of a run
	if *idle > 0 {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConns = *idle
		transport.MaxIdleConnsPerHost = *idle
		proxy.Transport = transport
	}
	g := gate{begin: make(chan chan struct{}), end: make(chan struct{})}
	go g.run(*grace)
	log.Fatal(http.ListenAndServe(*listen, g.guard(proxy)))
}
